"""The look that all figures of the book share: readable in print, on a phone and colour-blind."""

import json
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import torch
from cycler import cycler
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

import wsr

# Okabe and Ito's palette, which remains distinct for colour-blind eyes; black comes first.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
# Line styles change with the colours, so that a grey print still tells curves apart.
_STYLES = cycler(
    color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK, SKY],
    linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))],
)


def use_style() -> None:
    """Set matplotlib's defaults for a chapter; its figures become scalable vector graphics."""
    set_matplotlib_formats("svg")
    plt.rcParams.update(
        {
            "axes.grid": True,
            "axes.prop_cycle": _STYLES,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.figsize": (6.4, 3.6),
            "font.size": 11,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "wsr",  # the same figure gives the same file
        }
    )


def space_time(axes: Axes, motion: wsr.Trajectory) -> None:
    """Draw the paths of sticky particles: position to the right, time upward, clusters thicker."""
    for n in range(len(motion.times) - 1):
        for k in motion.labels[n].unique():
            members = (motion.labels[n] == k).nonzero().flatten()
            axes.plot(
                motion.positions[n : n + 2, members[0]],
                motion.times[n : n + 2],
                color=BLUE,
                linestyle="-",
                linewidth=0.8 + 0.5 * len(members),
                solid_capstyle="round",
            )


def sticky_particles(w: Tensor, lambd: float) -> Figure:
    """Draw weights on their way to their prox."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    space_time(axes, wsr.simulate(w, lambd))
    dots = {"linestyle": "none", "clip_on": False, "zorder": 3}
    axes.plot(w, torch.zeros(len(w)), marker="o", color=BLACK, label="weights $w$", **dots)
    end = wsr.prox(w, lambd)
    label = r"$\mathrm{prox}_{\lambda R}(w)$"
    axes.plot(end, torch.ones(len(w)), marker="s", color=VERMILION, label=label, **dots)
    axes.set(xlabel="weight (units of $w$)", ylabel="time (1: full strength)", ylim=(0, 1))
    axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    return figure


def fourteen_weights() -> Tensor:
    """Return the weights of the picture on the first page."""
    centres = torch.tensor([-1.6] * 4 + [0.0] * 5 + [1.8] * 5, dtype=torch.float64)
    noise = torch.randn(14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return centres + 0.4 * noise


# The time moves only when the reader moves it.  Who asked for less motion gets steps, not a flow.
_MOVING_PARTICLES = Template("""
<div class="moving-particles" id="$name">
<style>
.moving-particles svg { display: block; width: 100%; max-width: 40rem; background: #fff; }
.moving-particles text { font: 13px sans-serif; fill: #000; }
.moving-particles .axes { fill: none; stroke: #000; stroke-width: 1; }
.moving-particles .axes text { stroke: none; fill: #000; }
.moving-particles .paths { stroke: #0072B2; stroke-linecap: round; opacity: 0.45; }
.moving-particles .now { stroke: #000; stroke-dasharray: 4 4; }
.moving-particles circle { fill: #D55E00; stroke: #000; stroke-width: 1; }
.moving-particles .controls { display: flex; flex-wrap: wrap; gap: 0.6rem; align-items: center;
  max-width: 40rem; margin-top: 0.4rem; }
.moving-particles .controls[hidden] { display: none; }
.moving-particles input { flex: 1 1 10rem; min-width: 8rem; min-height: 1.8rem; }
.moving-particles button { min-width: 5rem; padding: 0.3rem 0.7rem; font: inherit; color: #000;
  background: #eee; border: 1px solid #555; border-radius: 0.3rem; cursor: pointer; }
.moving-particles output { flex: 1 0 100%; font-variant-numeric: tabular-nums; }
@media print { .moving-particles .controls { display: none !important; } }
</style>
<svg viewBox="0 0 $width $height" role="img" aria-label="$description">
<g class="axes"><path d="M$left ${high}V${low}H$right"/>$labels
<text x="$middle" y="$height" dy="-6" text-anchor="middle">position (units of w)</text>
<text transform="translate(13 $high) rotate(-90)" text-anchor="end">time (1: full strength)</text>
</g>
<g class="paths">$paths</g>
<line class="now" x1="$left" x2="$right" y1="$low" y2="$low"/>
<g class="dots">$dots</g>
</svg>
<div class="controls" role="group" aria-label="Time of the particles" hidden>
<button type="button" class="play">Play</button>
<button type="button" class="next">Next meeting</button>
<input type="range" min="0" max="1" step="0.005" value="0" aria-label="time">
<output aria-live="polite"></output>
</div>
<script>
(() => {
  const box = document.getElementById("$name");
  const { times, columns, sizes, up } = $data;
  const [play, next] = box.querySelectorAll("button");
  const slider = box.querySelector("input"), line = box.querySelector(".now");
  const dots = [...box.querySelectorAll("circle")];
  const output = box.querySelector("output");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let now = 0, timer = null, last = 0;

  function show(t) {
    now = Math.min(Math.max(t, 0), 1);
    let n = 0;
    while (n < times.length - 2 && times[n + 1] <= now) n += 1;
    const share = (now - times[n]) / (times[n + 1] - times[n]);
    const row = now === 1 ? times.length - 1 : n;
    const y = up[0] + now * (up[1] - up[0]);
    dots.forEach((dot, k) => {
      dot.setAttribute("cx", columns[n][k] + share * (columns[n + 1][k] - columns[n][k]));
      dot.setAttribute("cy", y);
      dot.setAttribute("r", 4 * Math.sqrt(sizes[row][k]));
    });
    line.setAttribute("y1", y);
    line.setAttribute("y2", y);
    const clusters = Math.round(sizes[row].reduce((sum, size) => sum + 1 / size, 0));
    const text = "time " + now.toFixed(3) + ", clusters: " + clusters;
    slider.value = now;
    slider.setAttribute("aria-valuetext", text);
    output.textContent = text;
  }
  function pause() {
    clearTimeout(timer);
    cancelAnimationFrame(timer);
    timer = null;
    play.textContent = "Play";
    output.setAttribute("aria-live", "polite");
  }
  const step = () => show(times.find((t) => t > now) ?? 1);
  function flow(stamp) {
    show(now + Math.min(stamp - last, 100) / 8000);
    last = stamp;
    if (now < 1) timer = requestAnimationFrame(flow); else pause();
  }
  function jump() {
    step();
    if (now < 1) timer = setTimeout(jump, 1000); else pause();
  }
  play.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (now === 1) show(0);
    play.textContent = "Pause";
    output.setAttribute("aria-live", "off");  // else every frame is read aloud
    last = performance.now();
    timer = calm.matches ? setTimeout(jump, 1000) : requestAnimationFrame(flow);
  });
  next.addEventListener("click", () => { pause(); step(); });
  slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
  box.querySelector(".controls").hidden = false;
  show(0);
})();
</script>
</div>
""")


def moving_particles(motion: wsr.Trajectory, name: str, description: str) -> HTML:
    """Return a space-time diagram through which the reader moves the time, by slider or by button.

    ``name`` is an HTML id of its own; ``description`` says what there is to see.  It needs nothing
    from elsewhere; without a script, and on paper, it is the diagram with the particles at time 0.
    """
    width, height, left, right, top, bottom = 480, 330, 44, 12, 10, 46
    low, high = motion.positions.min().item(), motion.positions.max().item()
    margin = 0.04 * (high - low)

    def across(position: float) -> float:
        share = (position - low + margin) / (high - low + 2 * margin)
        return round(left + share * (width - left - right), 2)

    def up(t: float) -> float:
        return round(height - bottom - t * (height - top - bottom), 2)

    times = motion.times.tolist()
    columns = [[across(p) for p in row] for row in motion.positions.tolist()]
    sizes = [row.bincount()[row].tolist() for row in motion.labels]
    paths = {
        f'<line x1="{columns[n][k]}" y1="{up(times[n])}" x2="{columns[n + 1][k]}" '
        f'y2="{up(times[n + 1])}" stroke-width="{0.8 + 0.5 * sizes[n][k]}"/>': None
        for n in range(len(times) - 1)
        for k in range(len(columns[0]))
    }
    ticks = [v for v in MaxNLocator(6).tick_values(low, high).tolist() if low <= v <= high]
    labels = [
        f'<text x="{across(v)}" y="{height - bottom + 22}" text-anchor="middle">{v:g}</text>'
        f'<path d="M{across(v)} {height - bottom}v5"/>'
        for v in ticks
    ] + [
        f'<text x="{left - 9}" y="{up(t) + 4}" text-anchor="end">{t:g}</text>'
        f'<path d="M{left} {up(t)}h-5"/>'
        for t in (0, 0.5, 1)
    ]
    dots = [f'<circle cx="{x}" cy="{up(0)}" r="4"/>' for x in columns[0]]
    data = {"times": times, "columns": columns, "sizes": sizes, "up": [up(0), up(1)]}
    return HTML(
        _MOVING_PARTICLES.substitute(
            name=name,
            description=description,
            width=width,
            height=height,
            left=left,
            right=width - right,
            low=up(0),
            high=up(1),
            middle=(left + width - right) / 2,
            paths="".join(paths),
            labels="".join(labels),
            dots="".join(dots),
            data=json.dumps(data, separators=(",", ":")),
        )
    )


if __name__ == "__main__":  # the picture of the README
    use_style()
    plt.rcParams["svg.fonttype"] = "path"
    picture = Path(__file__).parent / "_static" / "sticky_particles.svg"
    sticky_particles(fourteen_weights(), 1.4).savefig(
        picture, facecolor="white", metadata={"Date": None}
    )
