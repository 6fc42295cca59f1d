"""The look that all figures of the book share: readable in print, on a phone and colour-blind."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


if __name__ == "__main__":  # the picture of the README
    use_style()
    plt.rcParams["svg.fonttype"] = "path"
    picture = Path(__file__).parent / "_static" / "sticky_particles.svg"
    sticky_particles(fourteen_weights(), 1.4).savefig(
        picture, facecolor="white", metadata={"Date": None}
    )
