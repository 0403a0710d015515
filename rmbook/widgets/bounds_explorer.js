// The front end of BoundsExplorer: five sliders over precomputed values, one picture, one sentence.
const [WIDTH, HEIGHT, LEFT, TOP, ACROSS, DOWN] = [480, 300, 50, 10, 410, 244];
const LABELS = ["examples n", "features d", "density p", "failure δ", "entries up to r"];
const TOP_POWER = 10;  // of the picture's frame, from 1 to 10^TOP_POWER

const reading = (x) => (x >= 1e7 ? x.toExponential(1) : x >= 10 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(3)));

function draw(state, host) {
  const sizes = state.choices.map((c) => c.length);
  const root = make("div", { class: "rm-figure rmb", role: "group", "aria-label": "Deviation of eigenvalues and what bounds allow" }, host);
  const controls = make("div", { class: "rmb-controls" }, root);
  const sliders = state.choices.map((choices, k) => {
    const row = sliderRow(controls, "ndpδr"[k], LABELS[k], { min: 0, max: sizes[k] - 1, step: 1, value: state.first[k] });
    row.input.addEventListener("input", update);
    return row;
  });
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, root), title = make("title", {}, svg);
  const P = state.choices[2], x = (p) => LEFT + ACROSS * Math.log(p / P[0]) / Math.log(P.at(-1) / P[0]);
  const y = (value) => TOP + DOWN * (1 - Math.min(TOP_POWER + 0.2, Math.max(0, Math.log10(value))) / TOP_POWER);
  for (let power = 0; power <= TOP_POWER; power += 2) {
    make("path", { d: `M${LEFT} ${y(10 ** power)}h${ACROSS}`, class: "rm-grid" }, svg);
    make("text", { x: LEFT - 6, y: y(10 ** power) + 4, "text-anchor": "end" }, svg, power < 5 ? reading(10 ** power) : `1e${power}`);
  }
  for (const p of P) if (String(p).endsWith("1")) make("text", { x: x(p), y: TOP + DOWN + 17, "text-anchor": "middle" }, svg, String(p));
  make("text", { x: LEFT + ACROSS / 2, y: HEIGHT - 8, "text-anchor": "middle" }, svg, "density p");
  make("text", { x: 12, y: TOP + DOWN / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${TOP + DOWN / 2})` }, svg, "in units of r²");
  const cursor = make("path", { class: "rmb-cursor" }, svg);
  const lines = state.curves.map((_, c) => make("path", { class: `rmb-line rmb-line${c}` }, svg));
  const dots = state.curves.map((_, c) => make("circle", { r: 4, class: `rmb-dot${c}` }, svg));
  const legend = make("p", { class: "rm-legend rmb-legend" }, root);
  const readouts = state.curves.map((name, c) => {
    const item = make("span", {}, legend), sample = make("svg", { viewBox: "0 0 30 10", "aria-hidden": "true" }, item);
    make("path", { d: "M0 5H30", class: `rmb-line rmb-line${c}` }, sample);
    make("span", {}, item, name + " ");
    return make("b", { "data-curve": c }, item);
  });
  const status = make("p", { class: "rm-status rmb-status", role: "status" }, root);

  function value(curve, [n, d, p, delta, r]) {
    return curve < 3 ? state.ours[curve][((n * sizes[1] + d) * sizes[2] + p) * sizes[3] + delta]
      : state.theorems[curve - 3][((n * sizes[1] + d) * sizes[3] + delta) * sizes[4] + r];
  }
  function update() {
    const at = sliders.map(({ input }) => +input.value), chosen = at.map((i, k) => state.choices[k][i]);
    sliders.forEach(({ input, output }, k) => {
      output.textContent = reading(chosen[k]);
      input.setAttribute("aria-valuetext", reading(chosen[k]));
    });
    const values = state.curves.map((_, c) => value(c, at));
    lines.forEach((line, c) => line.setAttribute("d", P.map((p, i) =>
      `${i ? "L" : "M"}${x(p).toFixed(1)} ${y(value(c, at.map((v, k) => (k === 2 ? i : v)))).toFixed(1)}`).join("")));
    dots.forEach((dot, c) => { dot.setAttribute("cx", x(chosen[2])); dot.setAttribute("cy", y(values[c])); });
    cursor.setAttribute("d", `M${x(chosen[2])} ${TOP}v${DOWN}`);
    readouts.forEach((readout, c) => { readout.textContent = reading(values[c]); });
    const word = (bound) => (bound < values[0] ? "below p λ₁, so it says something" : "above p λ₁, so it says nothing");
    status.textContent = `${LABELS.map((label, k) => `${label} ${reading(chosen[k])}`).join(", ")}. p λ₁ is ${reading(values[0])}. Of ${state.masks} masks, `
      + `${100 - 100 * chosen[3]} % deviate by at most ${reading(values[1])}. Matrix Bernstein allows ${reading(values[2])}: ${word(values[2])}. `
      + `Theorem 5.1 allows ${reading(values[3])}: ${word(values[3])}. As printed it allows ${reading(values[4])}.`;
    title.textContent = status.textContent;
  }
  update();
}
export default { render: ({ model, el }) => draw(model.get("data"), el) };
