// The explorer's one front end, for a live kernel and for a static page. `model` is an anywidget model, or the stub
// that Explorer.to_html writes into a page, in which no Python answers.
const COLOURS = ["#00224e", "#013271", "#2f426d", "#48526c", "#5e636f", "#727374",
  "#878478", "#9d9576", "#b6a96f", "#cebc63", "#e7d150", "#fee838"];  // matplotlib's cividis, low to high
const [WIDTH, HEIGHT, LEFT, TOP, DOWN] = [400, 270, 58, 12, 214];  // both plots: size, and the frame's place in it
const DECADE = 200, MISSING = 65535;  // levels of a stored curve in a decade of loss; the level that is no number

const floats = (base64) => new Float32Array(bytes(base64).buffer);
const same = (a, b) => Math.abs(Math.log(a / b)) < 1e-6;

function draw(model, host) {
  const data = model.get("data"), live = data.live;
  const P = data.densities, R = data.rates, S = data.steps, T = S.length;
  const finals = floats(data.finals), distances = floats(data.distances), curves = new Uint16Array(bytes(data.curves).buffer);
  const [low, high] = data.span;  // log10 of the losses at the bottom and the top of the curve's frame
  const uid = "rmx" + Math.random().toString(36).slice(2);
  const diverged = (loss) => loss > data.start;
  const root = make("div", { class: "rm-figure rmx", role: "group", "aria-label": data.title }, host);

  // ---- two sliders: any value with a kernel, the grid's values without
  const controls = make("div", { class: "rmx-controls" }, root);
  function slider(name, label, grid) {
    const { input, output } = sliderRow(controls, name, label, live
      ? { min: Math.log10(grid[0]), max: Math.log10(grid.at(-1)), step: 0.01 } : { min: 0, max: grid.length - 1, step: 1 });
    // A range input rounds to its step, and 10 ** round(log10(0.2), 2) is not 0.2: so the value is kept here.
    const self = { grid, input, output, set(value) {
      self.value = live ? value : grid[nearest(grid, value)];
      input.value = live ? Math.log10(value) : nearest(grid, value);
    } };
    input.addEventListener("input", () => {
      const end = +input.value === +input.min ? 0 : +input.value === +input.max ? grid.length - 1 : -1;
      self.value = end >= 0 ? grid[end] : live ? +(10 ** input.value).toPrecision(6) : grid[+input.value];
      changed();
    });
    self.set(model.get(name));
    return self;
  }
  const density = slider("density", data.density_label, P), rate = slider("learning_rate", data.rate_label, R);

  // ---- map of the final loss
  const plots = make("div", { class: "rmx-plots" }, root);
  const map = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, plots);
  const mapTitle = make("title", {}, map), across = 262, cell = [across / P.length, DOWN / R.length];
  const hatch = make("pattern", { id: uid, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, make("defs", {}, map));
  make("path", { d: "M0 6L6 0", class: "rmx-hatch" }, hatch);
  const mapX = (p) => LEFT + cell[0] * (0.5 + (P.length - 1) * Math.log(p / P[0]) / Math.log(P.at(-1) / P[0]));
  const mapY = (r) => TOP + DOWN - cell[1] * (0.5 + (R.length - 1) * Math.log(r / R[0]) / Math.log(R.at(-1) / R[0]));
  const shown = finals.filter((loss) => !(diverged(loss) || isNaN(loss)));  // what the colours are for
  const [least, most] = shown.length ? [Math.min(...shown), Math.max(...shown)].map(Math.log10) : [low, high];
  const colour = (loss) => COLOURS[Math.min(11, Math.floor(12 * (Math.log10(loss) - least) / (most - least || 1)))];
  const cells = make("g", { "shape-rendering": "crispEdges" }, map);
  R.forEach((_, i) => P.forEach((_, j) => {
    const loss = finals[i * P.length + j];
    const fill = isNaN(loss) ? "none" : diverged(loss) ? `url(#${uid})` : colour(loss);
    make("rect", { x: LEFT + j * cell[0], y: TOP + DOWN - (i + 1) * cell[1], width: cell[0] + 0.4, height: cell[1] + 0.4, fill }, cells);
  }));
  frame(map, { left: LEFT, top: TOP, width: across, height: DOWN }, data.density_label, data.rate_label);
  decades(P[0], P.at(-1)).forEach(([x, text]) => tick(map, mapX(x), TOP + DOWN + 16, "middle", text));
  decades(R[0], R.at(-1)).forEach(([y, text]) => tick(map, LEFT - 5, mapY(y) + 4, "end", text));
  COLOURS.forEach((fill, k) => make("rect", { x: 338, y: TOP + DOWN - (k + 1) * DOWN / 12, width: 14, height: DOWN / 12 + 0.4, fill }, map));
  const bar = (power) => TOP + DOWN * (1 - (power - least) / (most - least || 1));
  decades(10 ** least, 10 ** most, 5).forEach(([value, text]) => tick(map, 356, bar(Math.log10(value)) + 4, "start", text));
  tick(map, WIDTH, HEIGHT - 6, "end", "final " + data.loss_label);
  if (data.borders) {
    const points = P.map((p, j) => [mapX(p), mapY(data.borders[j])]).filter(([, y]) => y >= TOP && y <= TOP + DOWN);
    const d = points.map(([x, y], k) => (k ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1)).join("");
    for (const name of ["rmx-casing", "rmx-border"]) make("path", { d, class: name, fill: "none" }, map);
  }
  const marks = ["rmx-halo", "rmx-mark"].map((name) => make("circle", { class: name, r: 6, fill: "none" }, map));
  map.addEventListener("click", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    const [j, i] = [Math.floor((at.x - LEFT) / cell[0]), Math.floor((TOP + DOWN - at.y) / cell[1])];
    if (!(j in P && i in R)) return;
    density.set(P[j]); rate.set(R[i]); changed();
  });

  // ---- loss curve
  const line = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, plots);
  const lineTitle = make("title", {}, line), wide = WIDTH - LEFT - 18;
  const lineX = (step) => LEFT + wide * (step - S[0]) / (S.at(-1) - S[0]);
  const lineY = (power) => TOP + DOWN * (1 - (Math.max(low, power) - low) / (high - low));
  decades(10 ** low, 10 ** high).forEach(([value, text]) => {
    const y = lineY(Math.log10(value));
    make("path", { d: `M${LEFT} ${y}h${wide}`, class: "rm-grid" }, line);
    tick(line, LEFT - 5, y + 4, "end", text);
  });
  make("path", { d: `M${LEFT} ${lineY(Math.log10(data.start))}h${wide}`, class: "rmx-start" }, line);
  [0, 0.5, 1].forEach((f) => tick(line, LEFT + wide * f, TOP + DOWN + 16, "middle", Math.round(S[0] + f * (S.at(-1) - S[0]))));
  frame(line, { left: LEFT, top: TOP, width: wide, height: DOWN }, "step", data.loss_label);
  const inside = make("clipPath", { id: uid + "c" }, make("defs", {}, line));
  make("rect", { x: LEFT, y: TOP, width: wide, height: DOWN + 1 }, inside);
  const [near, path] = ["rmx-near", "rmx-line"].map((name) => make("path", { class: name, fill: "none", "clip-path": `url(#${uid}c)` }, line));
  // A curve ends with the line that leaves the frame at the top, or where nothing is recorded.
  function toPath(powers) {
    let d = "";
    for (let k = 0; k < T && !Number.isNaN(powers[k]); k++) {
      d += (k ? "L" : "M") + lineX(S[k]).toFixed(2) + " " + lineY(powers[k]).toFixed(2);
      if (powers[k] > high) break;
    }
    return d;
  }
  const stored = (i, j) => Array.from(curves.subarray((i * P.length + j) * T, (i * P.length + j + 1) * T),
    (level) => (level === MISSING ? NaN : low + level / DECADE));

  const legend = make("p", { class: "rm-legend rmx-legend", "aria-hidden": "true" }, root);
  const key = (drawing, text) => {
    const sample = make("svg", { viewBox: "0 0 26 12" }, make("span", {}, legend));
    make(drawing[0], { ...drawing[1], fill: drawing[1].fill ?? "none" }, sample);
    sample.parentNode.append(text);
  };
  key(["rect", { width: 26, height: 12, fill: `url(#${uid})`, class: "rm-frame" }], data.lost_label);
  if (data.borders) key(["path", { d: "M0 6H26", class: "rmx-border" }], data.border_label);
  key(["path", { d: "M0 6H26", class: "rmx-start" }], data.loss_label + " at the start");
  if (live) key(["path", { d: "M0 6H26", class: "rmx-near" }], "nearest grid point");
  const status = make("p", { class: "rm-status rmx-status", role: "status" }, root);

  // ---- what changes
  function update() {
    const [p, r] = [density.value, rate.value], [j, i] = [nearest(P, p), nearest(R, r)], run = live ? model.get("run") : {};
    const answered = same(run.density, p) && same(run.learning_rate, r), computed = answered && !run.error;
    const k = i * P.length + j, curve = stored(i, j);
    const final = computed ? run.losses[T - 1] : finals[k], distance = computed ? run.distance : distances[k];
    path.setAttribute("d", toPath(computed ? run.losses.map((x) => (x === null ? NaN : Math.log10(x))) : curve));
    near.setAttribute("d", live ? toPath(curve) : "");
    for (const mark of marks) { mark.setAttribute("cx", mapX(p)); mark.setAttribute("cy", mapY(r)); }
    for (const s of [density, rate]) {
      s.output.textContent = show(s.value);
      s.input.setAttribute("aria-valuetext", show(s.value));
    }
    const result = final === null || Number.isNaN(final) ? "not recorded."
      : diverged(final) ? `${data.lost_label}: the ${data.loss_label} ended above its start, ${show(data.start)}.`
      : `${data.loss_label} ${final <= data.floor ? "below " : ""}${show(final)} after ${S.at(-1)} steps, distance ${show(distance)} from the start.`;
    const border = computed ? run.border : data.borders?.[j];
    const source = computed ? "Computed in Python for these values." : live
      ? `At the nearest grid point, ${show(P[j])} and ${show(R[i])}. ${answered ? "Python: " + run.error : "Waiting for Python …"}` : data.source;
    const message = `${capital(data.density_label)} ${show(p)}, ${data.rate_label} ${show(r)}: ${result} `
      + (border == null ? "" : `${capital(data.border_label)}: ${show(border)}. `) + source;
    status.textContent = message;
    status.dataset.state = computed ? "computed" : live && !answered ? "waiting" : "stored";
    mapTitle.textContent = `Map of the final ${data.loss_label} over ${data.density_label} and ${data.rate_label}. Marked: ${message}`;
    lineTitle.textContent = `Curve of the ${data.loss_label} over the steps. ${message}`;
  }
  let timer, asked = null;
  const isFor = (run, values) => same(run.density, values[0]) && same(run.learning_rate, values[1]);
  function changed() {
    update();
    clearTimeout(timer);
    if (live) timer = setTimeout(ask, 80);
  }
  // One question at a time: a slow Python is asked for the newest values only, when it has answered.
  function ask() {
    const wanted = [density.value, rate.value];
    if (asked || isFor(model.get("run"), wanted)) return;
    asked = wanted;
    model.set("density", wanted[0]); model.set("learning_rate", wanted[1]); model.save_changes();
  }
  function answer() {
    const run = model.get("run");
    if (!("density" in run)) return;  // none yet: the grid is being replaced
    if (asked && isFor(run, asked)) { asked = null; ask(); }
    else if (!asked) { density.set(run.density); rate.set(run.learning_rate); }  // moved from Python
    update();
  }
  model.on("change:run", answer);
  update();
  return () => { clearTimeout(timer); model.off("change:run", answer); root.remove(); };
}

function render({ model, el }) {
  let clear = draw(model, el);
  const again = () => { clear(); clear = draw(model, el); };
  model.on("change:data", again);
  return () => { model.off("change:data", again); clear(); };
}
export default { render };
