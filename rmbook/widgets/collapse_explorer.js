// The front end of CollapseExplorer: curves that a slider moves sideways by a power of each one's factor.
const [WIDTH, HEIGHT] = [560, 310], BOX = { left: 58, top: 12, width: 486, height: 240 };
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 1 2 1 2", "1 5"];

function draw(data, host) {
  const root = make("div", { class: "rm-figure rmo", role: "group", "aria-label": data.title }, host);
  const { exponents, curves } = data;
  const { input, output } = sliderRow(root, "exponent", data.slider, { min: 0, max: exponents.length - 1, step: 1, value: data.first });
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, root), title = make("title", {}, svg), paper = make("g", {}, svg);
  const legend = make("p", { class: "rm-legend", "aria-hidden": "true" }, root);
  curves.forEach(({ name }, k) => {
    const sample = make("svg", { viewBox: "0 0 30 12" }, make("span", {}, legend));
    make("path", { class: `rmo-line rmo-${k}`, "stroke-dasharray": DASHES[k], d: "M0 6H30" }, sample);
    sample.parentNode.append(name);
  });
  const status = make("p", { class: "rm-status rmo-status", role: "status" }, root);
  const values = curves.flatMap((curve) => curve.y), low = Math.min(...values), high = Math.max(...values);
  const y = (value) => BOX.top + 8 + (BOX.height - 16) * (1 - (value - low) / (high - low || 1));
  const moved = (curve, exponent) => curve.x.map((x) => Math.log(x) + exponent * Math.log(curve.factor));

  function between(x, at, value) {
    let k = 1;
    while (k < at.length - 1 && at[k] < x) k++;
    return value[k - 1] + ((value[k] - value[k - 1]) * (x - at[k - 1])) / (at[k] - at[k - 1]);
  }
  function apart(places) {  // as CollapseExplorer.apart
    const squares = [];
    for (let i = 0; i < curves.length; i++) for (let j = i + 1; j < curves.length; j++) {
      const from = Math.max(places[i][0], places[j][0]), to = Math.min(places[i].at(-1), places[j].at(-1));
      if (from >= to) continue;
      let sum = 0;
      for (let k = 0; k < data.points; k++) {
        const x = from + ((to - from) * k) / (data.points - 1);
        sum += (between(x, places[i], curves[i].y) - between(x, places[j], curves[j].y)) ** 2;
      }
      squares.push(sum / data.points);
    }
    return squares.length ? Math.sqrt(squares.reduce((a, b) => a + b) / squares.length) : NaN;
  }
  const distances = exponents.map((exponent) => apart(curves.map((curve) => moved(curve, exponent))));
  const nearest = distances.reduce((best, value, k) => (value < distances[best] ? k : best), 0);

  function update() {
    const at = +input.value, exponent = exponents[at], places = curves.map((curve) => moved(curve, exponent));
    const all = places.flat(), from = Math.min(...all), to = Math.max(...all);
    const x = (place) => BOX.left + 10 + ((BOX.width - 20) * (place - from)) / (to - from);
    paper.textContent = "";
    const step = 10 ** Math.floor(Math.log10((high - low) / 2 || 1)), wide = step * (high - low > 10 * step ? 5 : high - low > 5 * step ? 2 : 1);
    for (let k = Math.ceil(low / wide); k * wide <= high; k++) {
      make("path", { class: "rm-grid", d: `M${BOX.left} ${y(k * wide)}h${BOX.width}` }, paper);
      tick(paper, BOX.left - 5, y(k * wide) + 4, "end", +(k * wide).toPrecision(3));
    }
    for (const [value, text] of decades(Math.exp(from), Math.exp(to))) tick(paper, x(Math.log(value)), BOX.top + BOX.height + 17, "middle", text);
    const words = show(exponent);
    frame(paper, BOX, data.x.replace("{}", words), data.y);
    curves.forEach((curve, k) => {
      const d = curve.y.map((value, i) => `${i ? "L" : "M"}${x(places[k][i]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      make("path", { class: `rmo-line rmo-${k}`, "stroke-dasharray": DASHES[k], d }, paper);
    });
    output.textContent = words;
    input.setAttribute("aria-valuetext", words);
    const message = `${capital(data.slider)} ${words}: ` + (isNaN(distances[at]) ? "no two curves have a place in common." : `two curves are ${distances[at].toPrecision(2)} apart on average (root mean square of ${data.y}).`)
      + (isNaN(distances[nearest]) ? "" : ` They are nearest, ${distances[nearest].toPrecision(2)}, at ${show(exponents[nearest])}.`);
    status.textContent = `${message} ${data.source}`;
    title.textContent = `${capital(data.y)} over ${data.x.replace("{}", words)}, ${curves.length} curves. ${message}`;
  }
  input.addEventListener("input", update);
  update();
}
export default { render: ({ model, el }) => draw(model.get("data"), el) };
