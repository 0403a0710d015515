// The front end of CurveExplorer: a slider over curves with bands, and a list of the quantities that can be shown.
const [WIDTH, HEIGHT] = [560, 310], BOX = { left: 58, top: 12, width: 486, height: 240 };

function draw(data, host) {
  const root = make("div", { class: "rm-figure rmc", role: "group", "aria-label": data.title }, host);
  const { input, output } = sliderRow(root, "slider", data.slider, { min: 0, max: data.values.length - 1, step: 1, value: data.first });
  let metric = data.metrics[0];
  if (data.metrics.length > 1) {
    const row = make("div", { class: "rm-row" }, root), id = unique();
    make("label", { for: id }, row, "shown");
    const list = make("select", { id, "data-name": "metric", "data-lm-suppress-shortcuts": "true" }, row);
    for (const { name } of data.metrics) make("option", { value: name }, list, name.replaceAll("_", " "));
    list.addEventListener("change", () => { metric = data.metrics[list.selectedIndex]; axes(); update(); });
  }
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, root), title = make("title", {}, svg);
  const paper = make("g", {}, svg);
  const legend = make("p", { class: "rm-legend", "aria-hidden": "true" }, root);
  const key = (name, text) => {
    const sample = make("svg", { viewBox: "0 0 30 12" }, make("span", {}, legend));
    if (name === "rmc-band") make("rect", { class: name, width: 30, height: 12 }, sample); else make("path", { class: name, d: "M0 6H30" }, sample);
    sample.parentNode.append(text);
  };
  key("rmc-line", "mean");
  if (data.spread) key("rmc-band", data.spread);
  key("rmc-other", `other values of ${data.slider}`);
  if (data.metrics.some(({ better }) => better)) key("rmc-best", `best ${data.x_name}` + (data.spread ? " (bar below: of each one alone)" : ""));
  const status = make("p", { class: "rm-status rmc-status", role: "status" }, root);
  const X = data.x, scale = (ends, log) => (value) => (log ? Math.log(value / ends[0]) / Math.log(ends[1] / ends[0]) : (value - ends[0]) / (ends[1] - ends[0])) || 0;
  const logX = X[0] > 0 && X.at(-1) / X[0] > 30, ofX = scale([X[0], X.at(-1)], logX);
  const x = (value) => BOX.left + 10 + (BOX.width - 20) * ofX(value);
  let y, logY, band, line, dots, best, bar;

  function marks(ends, log) {
    if (log) return decades(...ends);
    const range = ends[1] - ends[0] || 1, step = 10 ** Math.floor(Math.log10(range / 2)), wide = step * (range > 10 * step ? 5 : range > 5 * step ? 2 : 1), found = [];
    for (let k = Math.ceil(ends[0] / wide - 1e-9); k * wide <= ends[1] * (1 + 1e-9) + 1e-12; k++) found.push([k * wide, +(k * wide).toPrecision(3)]);
    return found;
  }
  function axes() {
    paper.textContent = "";
    const all = metric.curves.flat(2).filter((value) => value !== null), ends = [Math.min(...all), Math.max(...all)];
    logY = ends[0] > 0 && ends[1] / ends[0] > 100;
    const of = scale(ends, logY);
    y = (value) => BOX.top + 8 + (BOX.height - 16) * (1 - of(value));
    for (const [value, text] of marks(ends, logY)) {
      make("path", { class: "rm-grid", d: `M${BOX.left} ${y(value)}h${BOX.width}` }, paper);
      tick(paper, BOX.left - 5, y(value) + 4, "end", text);
    }
    for (const [value, text] of marks([X[0], X.at(-1)], logX)) tick(paper, x(value), BOX.top + BOX.height + 17, "middle", text);
    frame(paper, BOX, data.x_name, metric.name.replaceAll("_", " "));
    for (const curve of metric.curves) make("path", { class: "rmc-other", d: path(curve) }, paper);
    band = make("path", { class: "rmc-band" }, paper);
    best = make("path", { class: "rmc-best" }, paper);
    bar = make("path", { class: "rmc-bar" }, paper);
    line = make("path", { class: "rmc-line" }, paper);
    dots = make("g", { class: "rmc-dots" }, paper);
  }
  const known = (curve) => curve.map((point, k) => [X[k], ...point]).filter((point) => point[1] !== null);
  const path = (curve) => known(curve).map(([at, mean], k) => `${k ? "L" : "M"}${x(at).toFixed(1)} ${y(mean).toFixed(1)}`).join("");
  function update() {
    const at = +input.value, curve = metric.curves[at], points = known(curve), ends = metric.ends[at];
    const words = typeof data.values[at] === "number" ? show(data.values[at]) : data.values[at];
    output.textContent = words;
    input.setAttribute("aria-valuetext", words);
    line.setAttribute("d", path(curve));
    const edge = (part, order) => order.map((point, k) => `${x(point[0]).toFixed(1)} ${y(point[part]).toFixed(1)}`).join("L");
    band.setAttribute("d", points.length ? `M${edge(2, points)}L${edge(3, [...points].reverse())}Z` : "");
    dots.textContent = "";
    for (const [value, mean] of points) make("circle", { cx: x(value), cy: y(mean), r: 3 }, dots);
    let message = `${capital(data.slider)} ${words}: `;
    const name = metric.name.replaceAll("_", " ");
    if (!points.length) message += "nothing is recorded.";
    else if (metric.better) {
      const sign = metric.better === "lower" ? -1 : 1, top = points.reduce((a, b) => (sign * b[1] > sign * a[1] ? b : a));
      best.setAttribute("d", `M${x(top[0])} ${BOX.top}v${BOX.height}`);
      bar.setAttribute("d", data.spread && ends ? `M${x(ends[0])} ${BOX.top + BOX.height - 3}H${x(ends[1]) + 0.1}` : "");
      message += `${name} is best, ${show(top[1])}` + (data.spread ? ` (${show(top[2])} to ${show(top[3])})` : "") + `, at ${data.x_name} ${show(top[0])}.`
        + (data.spread && ends && ends[0] !== ends[1] ? ` Taken alone, the best lie between ${show(ends[0])} and ${show(ends[1])}.` : "");
    } else message += `${name} goes from ${show(points[0][1])} to ${show(points.at(-1)[1])}.`;
    if (!points.length || !metric.better) for (const mark of [best, bar]) mark.setAttribute("d", "");
    status.textContent = `${message} ${data.source}`;
    title.textContent = `${capital(name)} over ${data.x_name}. ${message}`;
  }
  input.addEventListener("input", update);
  axes();
  update();
}
export default { render: ({ model, el }) => draw(model.get("data"), el) };
