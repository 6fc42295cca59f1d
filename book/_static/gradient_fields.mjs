// The gradient fields of why_sharing_helps.md: the reader chooses the number of patches and the
// time.  The chapter computes everything and draws one state of it; here it is only shown.  No
// dependencies, and no server: the page embeds this file as it stands.

const WORDS = { shared: "shared", rows: "free, rows penalised", free: "free" };

/** Numbers of 4 significant digits or, if tiny, zero. */
const short = (value) => (Math.abs(value) < 5e-4 ? "0" : value.toPrecision(3));

function mount(box) {
  box.dataset.mounted = "";
  const { times, fields } = JSON.parse(box.querySelector("script").textContent);
  const parts = { // the elements that a field sets, each by an attribute
    arrows: [box.querySelectorAll(".arrows path"), "d"],
    together: [box.querySelectorAll(".together path"), "d"],
    shades: [box.querySelectorAll(".tiles rect"), "opacity"],
  };
  const choices = [...box.querySelectorAll("button[data-k]")];
  const [play, slider] = [box.querySelector(".play"), box.querySelector("input")];
  const output = box.querySelector("output");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let [k, now, timer, last] = [box.dataset.k, Number(slider.value), null, 0];

  function show() {
    const at = Math.round(now);
    const words = Object.entries(fields[k].flows).map(([name, { places, states }]) => {
      const [x, y] = places[at];
      box.querySelector(`.${name} .now`).setAttribute("transform", `translate(${x} ${y})`);
      const [s, q, loss] = states[at];
      return `${WORDS[name]}: s = ${short(s)}, q = ${short(q)}, loss ${short(loss)}`;
    });
    slider.value = at;
    slider.setAttribute("aria-valuetext", `time ${short(times[at])}`);
    output.textContent = `k = ${k}, time ${short(times[at])}. ${words.join("; ")}.`;
  }

  function choose(patches) {
    k = patches;
    for (const made of choices) made.setAttribute("aria-pressed", made.dataset.k === k);
    for (const [name, [elements, attribute]] of Object.entries(parts)) {
      elements.forEach((one, n) => one.setAttribute(attribute, fields[k][name][n]));
    }
    for (const [name, { places }] of Object.entries(fields[k].flows)) {
      box.querySelector(`.${name} polyline`).setAttribute("points", places.join(" "));
    }
    show();
  }

  function pause() {
    clearTimeout(timer);
    cancelAnimationFrame(timer);
    timer = null;
    play.textContent = "Play";
    output.setAttribute("aria-live", "polite");
  }

  function advance(by) {
    now = Math.min(now + by, times.length - 1);
    show();
    if (now === times.length - 1) pause();
    return timer !== null;
  }

  function flow(stamp) {
    const elapsed = Math.min(stamp - last, 100);
    last = stamp;
    if (advance(elapsed / 100)) timer = requestAnimationFrame(flow);
  }

  function jump() {
    if (advance(10)) timer = setTimeout(jump, 1000); // who asked for less motion gets few steps
  }

  play.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (now === times.length - 1) now = 0;
    show();
    play.textContent = "Pause";
    output.setAttribute("aria-live", "off"); // else every frame is read aloud
    last = performance.now();
    timer = calm.matches ? setTimeout(jump, 1000) : requestAnimationFrame(flow);
  });
  slider.addEventListener("input", () => {
    pause();
    now = slider.valueAsNumber;
    show();
  });
  for (const made of choices) made.addEventListener("click", () => choose(made.dataset.k));
  box.querySelector(".controls").hidden = false;
  choose(k);
}

document.querySelectorAll(".gradient-fields:not([data-mounted])").forEach(mount);
