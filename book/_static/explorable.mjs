// Sticky particles that the reader moves.  No dependencies; the page embeds this file as it stands,
// so that it also works without a server.  Indices count from 0, as in wsr.

// The mathematics: prox and simulate give what wsr.prox and wsr.simulate give.

/** The velocity for lambda = 1 of the cluster of the sorted particles begin <= k < end. */
const velocity = (begin, end, d) => (d - begin - end) / Math.max(d - 1, 1);

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The mean, as offset from the first value: equal values stay exactly equal. */
const mean = (x) => x[0] + sum(x.map((value) => value - x[0])) / x.length;

/** The indices of the weights in ascending order of the weights. */
const sorted = (w) => w.map((_, i) => i).sort((i, j) => w[i] - w[j]);

/** Where the sorted particles x would stand at time 1 if they passed each other. */
export function freeEndPoints(x, lambd) {
  return x.map((position, k) => position + lambd * velocity(k, k + 1, x.length));
}

/** Pool adjacent violators: where the clusters begin.  Sums are exact, on the grid of wsr. */
export function heads(z) {
  const largest = Math.max(...z.map(Math.abs)) || 1;
  const grid = 2 ** (61 - Math.floor(Math.log2(largest)));
  const stack = [];
  z.forEach((value, begin) => {
    let [first, count, total] = [begin, 1n, BigInt(Math.round(value * grid))];
    while (stack.length) {
      const before = stack[stack.length - 1];
      if (before.total * count < total * before.count) break; // the means increase
      stack.pop();
      [first, count, total] = [before.begin, count + before.count, total + before.total];
    }
    stack.push({ begin: first, count, total });
  });
  return stack.map((cluster) => cluster.begin);
}

/**
 * The clusters of the prox: their members, mean start x and mean free end point z; whether l1
 * removes them, and if not their value, moved from x by 1 - rho of the displacement.
 */
export function clusters(w, lambd, l1 = 0, rho = 0) {
  const order = sorted(w);
  const sortedWeights = order.map((i) => w[i]);
  const begins = heads(freeEndPoints(sortedWeights, lambd));
  let z = -Infinity;
  return begins.map((begin, n) => {
    const end = begins[n + 1] ?? w.length;
    const x = mean(sortedWeights.slice(begin, end));
    z = Math.max(z, x + lambd * velocity(begin, end, w.length)); // rounding undoes no order
    const removed = Math.abs(z) < l1;
    const value = removed ? 0 : (1 - rho) * (z - l1 * Math.sign(z)) + rho * x;
    return { begin, end, members: order.slice(begin, end), x, z, removed, value };
  });
}

/** argmin over u of |u - w|^2 / 2 + lambd R(u) + l1 |u|_1, relaxed by rho. */
export function prox(w, lambd, l1 = 0, rho = 0) {
  const u = w.slice();
  for (const { members, value } of clusters(w, lambd, l1, rho)) {
    for (const i of members) u[i] = value;
  }
  return u;
}

/** The motion from time 0 to 1: at 0, at each event and at 1, the clusters from then on. */
export function simulate(w, lambd) {
  const order = sorted(w);
  const line = order.map((i, k) => ({ begin: k, end: k + 1, mean: w[i] })); // mean of the starts
  const speed = ({ begin, end }) => lambd * velocity(begin, end, w.length);
  const snapshot = (time) => ({
    time,
    clusters: line.map((cluster) => ({
      members: order.slice(cluster.begin, cluster.end),
      position: cluster.mean + time * speed(cluster),
      velocity: speed(cluster),
    })),
  });
  const meeting = () => {
    let first = { time: Infinity };
    for (let n = 0; n + 1 < line.length; n++) {
      const distance = line[n + 1].mean - line[n].mean;
      const time = distance > 0 ? distance / (speed(line[n]) - speed(line[n + 1])) : 0;
      if (time < first.time) first = { time, n };
    }
    return first;
  };
  const motion = [];
  let now = 0;
  for (let next = meeting(); ; next = meeting()) {
    if (next.time > now) motion.push(snapshot(now));
    if (next.time > 1) break;
    now = Math.max(now, next.time);
    const [left, right] = line.slice(next.n, next.n + 2);
    const share = (right.end - right.begin) / (right.end - left.begin);
    const joined = left.mean + share * (right.mean - left.mean); // momentum is conserved
    line.splice(next.n, 2, { begin: left.begin, end: right.end, mean: joined });
  }
  if (now < 1) motion.push(snapshot(1));
  return motion;
}

// The page.

const REACH = 3; // weights lie between -REACH and REACH
const STEPS = 20; // to one unit of w
const MOST = 16; // particles

const PRESETS = {
  "One cluster": { w: [-2.5, -1.75, -1.25, -0.5, 0.25, 0.5, 1, 1.75, 2.5], lambd: 3 },
  Cascade: { w: [-2, -2, -2, -2, -2, -1, -0.25, 0.75, 2], lambd: 2.5 },
  Ties: { w: [-2, -2, -2, -0.5, -0.5, 0.25, 1.5, 1.5, 1.5], lambd: 1 },
  Random: { w: () => Array.from({ length: 9 }, () => snap(1.2 * normal())), lambd: 1 },
};

const SLIDERS = {
  lambd: { label: "λ, sharing", unit: "units of w", max: 4 },
  l1: { label: "ℓ₁, shrinking", unit: "units of w", max: 2 },
  rho: { label: "ρ, relaxation", unit: "no unit", max: 1 },
};

const SKELETON = `
  <div class="presets" role="group" aria-label="Presets, and the number of particles"></div>
  <figure>
    <svg class="space-time" role="group"
      aria-label="Space-time diagram of the particles. Each particle is a slider."></svg>
    <figcaption><b>●</b> weights at time 0: drag them. <b>□</b> where sharing takes them by
    time 1. <b>◆</b> result, after ℓ₁ and ρ; <b>×</b> removed.</figcaption>
  </figure>
  <p class="seen" role="status"></p>
  <div class="sliders"></div>
  <figure>
    <svg class="minorant" role="img"></svg>
    <figcaption><b>○</b> sums of the first k free end points. Thick: a string pulled taut below
    them. <b>■</b> where one cluster ends and the next begins.</figcaption>
  </figure>`;

const MARGIN = { left: 48, right: 14 };
const HEIGHT = { result: 20, one: 70, zero: 276, all: 326 }; // of the lines, from the top

/** Where the fraction 0 .. 1 of the horizontal axis lies in a picture of this width. */
const along = (fraction, width) => MARGIN.left + fraction * (width - MARGIN.left - MARGIN.right);
const across = (weight, width) => along((weight + REACH) / (2 * REACH), width);
const upward = (time) => HEIGHT.zero + time * (HEIGHT.one - HEIGHT.zero);

const normal = () =>
  Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

const snap = (weight) => {
  const near = Math.round(weight * STEPS) / STEPS;
  return Math.min(REACH, Math.max(-REACH, near)) + 0; // + 0: no minus zero
};

const number = (value, digits = 2) => {
  const size = Math.abs(value).toFixed(digits);
  return value < 0 && Number(size) > 0 ? `−${size}` : size;
};

const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

function node(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const line = (kind, x1, y1, x2, y2) => node("line", { class: kind, x1, y1, x2, y2 });
const text = (kind, x, y, words) => node("text", { class: kind, x, y }, words);
const polyline = (kind, points) => node("polyline", { class: kind, points: points.join(" ") });
const circle = (kind, cx, cy, r) => node("circle", { class: kind, cx, cy, r });
const square = (kind, x, y, r) =>
  node("rect", { class: kind, x: x - r, y: y - r, width: 2 * r, height: 2 * r });
const diamond = (kind, x, y, r) =>
  node("path", { class: kind, d: `M${x - r} ${y}l${r} ${-r}l${r} ${r}l${-r} ${r}Z` });

/** The space-time diagram without its particles. */
function spaceTimeParts({ w, lambd, l1, rho }, found, width) {
  const x = (weight) => across(weight, width);
  const parts = [text("middle", x(0), HEIGHT.all - 4, "weight (units of w)")];
  for (let tick = -REACH; tick <= REACH; tick++) {
    parts.push(line("grid", x(tick), HEIGHT.result, x(tick), HEIGHT.zero));
    parts.push(text("middle", x(tick), HEIGHT.zero + 27, number(tick, 0)));
  }
  const rules = { result: HEIGHT.result, "time 1": HEIGHT.one, "time 0": HEIGHT.zero };
  for (const [name, y] of Object.entries(rules)) {
    parts.push(line("rule", MARGIN.left, y, width - MARGIN.right, y));
    parts.push(text("end", MARGIN.left - 6, y + 4, name));
  }
  if (l1 > 0) {
    const size = { width: x(l1) - x(-l1), height: HEIGHT.one - HEIGHT.result };
    parts.push(node("rect", { class: "band", x: x(-l1), y: HEIGHT.result, ...size }));
  }
  const motion = simulate(w, lambd);
  for (let n = 0; n + 1 < motion.length; n++) {
    const [from, to] = [motion[n].time, motion[n + 1].time];
    for (const { members, position, velocity } of motion[n].clusters) {
      const end = position + (to - from) * velocity;
      const track = line("track", x(position), upward(from), x(end), upward(to));
      track.setAttribute("stroke-width", 1 + 0.75 * members.length);
      parts.push(track);
    }
  }
  for (const { x: start, z, value, removed } of found) {
    const [one, end, y] = [x(z), x(value), HEIGHT.result];
    parts.push(line("after", one, HEIGHT.one, end, y), square("at-one", one, HEIGHT.one, 5));
    if (removed) {
      parts.push(line("removed", end - 6, y - 6, end + 6, y + 6));
      parts.push(line("removed", end - 6, y + 6, end + 6, y - 6));
    } else {
      if (rho > 0) parts.push(line("start", x(start), y - 9, x(start), y + 9));
      parts.push(diamond("result", end, y, 7));
    }
  }
  return parts;
}

/** The sums of the free end points and their greatest convex minorant. */
function minorantParts({ w, lambd }, found, width) {
  const sums = [0]; // of the first k free end points
  for (const z of freeEndPoints(sorted(w).map((i) => w[i]), lambd)) sums.push(sums.at(-1) + z);
  const bends = [0, ...found.map((cluster) => cluster.end)];
  const [top, bottom] = [28, 212];
  const low = Math.min(...sums);
  const range = Math.max(Math.max(...sums) - low, 1);
  const step = [0.25, 0.5, 1, 2, 5, 10, 20, 50].find((size) => range / size <= 5);
  const right = (k) => along(k / w.length, width);
  const up = (s) => bottom - ((s - low) / range) * (bottom - top);
  const parts = [text("", 4, 11, "sum (units of w)")];
  for (let s = Math.ceil(low / step) * step; s <= low + range; s += step) {
    parts.push(line("grid", MARGIN.left, up(s), width - MARGIN.right, up(s)));
    parts.push(text("end", MARGIN.left - 8, up(s) + 4, number(s, step < 1 ? 2 : 0)));
  }
  parts.push(text("end", MARGIN.left - 8, bottom + 24, "slope"));
  for (const { begin, end, z } of found) {
    const room = right(end) - right(begin) > 38;
    if (room) parts.push(text("middle", right((begin + end) / 2), bottom + 24, number(z)));
  }
  sums.forEach((_, k) => parts.push(text("middle", right(k), bottom + 44, `${k}`)));
  const axis = "number k of particles, from the left";
  parts.push(text("middle", along(0.5, width), bottom + 62, axis));
  parts.push(polyline("sums", sums.map((s, k) => [right(k), up(s)])));
  parts.push(polyline("string", bends.map((k) => [right(k), up(sums[k])])));
  const mark = (k) => (bends.includes(k) ? square("bend", right(k), up(sums[k]), 4.5)
    : circle("sum", right(k), up(sums[k]), 4));
  return [...parts, ...sums.map((_, k) => mark(k))];
}

/** What is to be seen, in words. */
export function describe(found) {
  const groups = []; // neighbours with the same value
  for (const { value, members, removed } of found) {
    const last = groups.at(-1);
    if (last?.value === value) { // one at the distance l1 from 0 ends there without being removed
      last.count += members.length;
      last.removed ||= removed;
    } else groups.push({ value, removed, count: members.length });
  }
  const values = groups.map(({ value, removed, count }) =>
    `${count} at ${removed ? "0 (removed)" : number(value, 3)}`);
  const counts = `${plural(found.at(-1).end, "particle")}, ${plural(found.length, "cluster")}`;
  return `${counts}. Result: ${values.join("; ")}.`;
}

/** A particle: a slider for the keyboard and for listeners. */
function newParticle(i) {
  const range = { "aria-valuemin": -REACH, "aria-valuemax": REACH };
  const role = { role: "slider", tabindex: 0, "aria-orientation": "horizontal", ...range };
  const shapes = [circle("reach", 0, 0, 20), circle("dot", 0, 0, 8), text("count", 0, 4, "")];
  return node("g", { "aria-label": `particle ${i + 1}`, ...role }, ...shapes);
}

function updateParticles(particles, { w }, found, width) {
  while (particles.children.length > w.length) particles.lastChild.remove();
  while (particles.children.length < w.length) {
    particles.append(newParticle(particles.children.length));
  }
  for (const { members, value, removed } of found) {
    const end = removed ? "removed, exactly 0" : `ends at ${number(value, 3)}`;
    const others = members.length > 1 ? `, with ${plural(members.length - 1, "other")}` : "";
    for (const i of members) {
      const particle = particles.children[i];
      const tied = w.filter((weight) => weight === w[i]).length;
      particle.querySelector(".count").textContent = tied > 1 ? tied : "";
      particle.setAttribute("transform", `translate(${across(w[i], width)} ${HEIGHT.zero})`);
      particle.setAttribute("aria-valuenow", w[i]);
      particle.setAttribute("aria-valuetext", `${number(w[i])}, ${end}${others}`);
    }
  }
}

/** Build the explorable inside an empty element. */
export function mount(place) {
  place.dataset.mounted = "";
  place.innerHTML = SKELETON;
  const [spaceTime, minorant] = place.querySelectorAll("svg");
  // The diagram is drawn anew each time; the particles stay, to keep the focus and the pointer.
  const diagram = node("g", { "aria-hidden": "true" });
  const particles = node("g", { class: "particles" });
  spaceTime.append(diagram, particles);
  const state = { w: [], lambd: 0, l1: 0, rho: 0 };
  let latest = 0; // the particle moved last
  let width = 640;

  function draw() {
    const found = clusters(state.w, state.lambd, state.l1, state.rho);
    spaceTime.setAttribute("viewBox", `0 0 ${width} ${HEIGHT.all}`);
    diagram.replaceChildren(...spaceTimeParts(state, found, width));
    updateParticles(particles, state, found, width);
    minorant.setAttribute("viewBox", `0 0 ${width} 280`);
    minorant.replaceChildren(...minorantParts(state, found, width));
    const slopes = found.map((cluster) => number(cluster.z)).join(", ");
    minorant.setAttribute("aria-label", `A taut string below the sums. Its slopes: ${slopes}.`);
    place.querySelector(".seen").textContent = describe(found);
    for (const [key, { unit }] of Object.entries(SLIDERS)) {
      const input = place.querySelector(`#sticky-particles-${key}`);
      input.value = state[key];
      input.setAttribute("aria-valuetext", `${number(state[key])} ${unit}`);
      input.parentElement.querySelector("output").textContent = `${number(state[key])} (${unit})`;
    }
    add.disabled = state.w.length >= MOST;
    remove.disabled = state.w.length <= 2;
  }

  function move(i, weight) {
    latest = i;
    state.w[i] = snap(weight);
    draw();
  }

  // A finger on a particle drags it; anywhere else it scrolls the page.  (Chromium knows no
  // touch-action inside an SVG.)
  particles.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  const grabbed = new Map(); // by pointer: which particle, and how far beside its centre
  const weightAt = ({ clientX }) => {
    const box = spaceTime.getBoundingClientRect();
    const [left, right] = [across(-REACH, width), across(REACH, width)];
    const x = ((clientX - box.left) / box.width) * width;
    return ((x - left) / (right - left)) * 2 * REACH - REACH;
  };
  particles.addEventListener("pointerdown", (event) => {
    const at = weightAt(event);
    const distances = state.w.map((weight) => Math.abs(weight - at));
    const i = distances.lastIndexOf(Math.min(...distances)); // the nearest; of a tie, the topmost
    grabbed.set(event.pointerId, { i, beside: state.w[i] - at });
    particles.setPointerCapture(event.pointerId);
    particles.children[i].focus({ preventScroll: true });
    event.preventDefault();
  });
  particles.addEventListener("pointermove", (event) => {
    const held = grabbed.get(event.pointerId);
    if (held) move(held.i, weightAt(event) + held.beside);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    particles.addEventListener(end, (event) => grabbed.delete(event.pointerId));
  }

  const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10,
    PageUp: 10, Home: -Infinity, End: Infinity }; // in steps
  particles.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    const i = [...particles.children].indexOf(event.target);
    move(i, state.w[i] + KEYS[event.key] / STEPS);
    event.preventDefault();
  });

  const button = (label, action) => {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", textContent: label });
    made.addEventListener("click", () => {
      action();
      latest = state.w.length - 1;
      draw();
    });
    place.querySelector(".presets").append(made);
    return made;
  };
  const choose = ({ w, lambd }) => {
    Object.assign(state, { w: typeof w === "function" ? w() : w.slice(), lambd, l1: 0, rho: 0 });
  };
  for (const [name, preset] of Object.entries(PRESETS)) button(name, () => choose(preset));
  const add = button("Add one", () => {
    const x = [-REACH, ...state.w, REACH].sort((a, b) => a - b);
    const gaps = x.slice(1).map((weight, k) => weight - x[k]);
    const k = gaps.indexOf(Math.max(...gaps)); // the widest gap
    state.w.push(snap((x[k] + x[k + 1]) / 2));
  });
  const remove = button("Remove one", () => state.w.splice(latest, 1));

  for (const [key, { label, max }] of Object.entries(SLIDERS)) {
    const control = document.createElement("div");
    const id = `sticky-particles-${key}`;
    control.innerHTML = `<label for="${id}">${label}</label> <output for="${id}"></output>
      <input id="${id}" type="range" min="0" max="${max}" step="${1 / STEPS}">`;
    control.querySelector("input").addEventListener("input", (event) => {
      state[key] = event.target.valueAsNumber;
      draw();
    });
    place.querySelector(".sliders").append(control);
  }

  choose(PRESETS.Cascade);
  new ResizeObserver(() => {
    width = Math.max(280, spaceTime.clientWidth);
    draw();
  }).observe(spaceTime);
  draw();
}

document.querySelectorAll(".sticky-particles:not([data-mounted])").forEach(mount);
