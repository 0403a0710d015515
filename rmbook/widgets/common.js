// What all figures of this room share. It stands in front of each one's script.
function make(tag, attributes, parent, text) {
  const drawn = tag === "svg" || parent?.namespaceURI === "http://www.w3.org/2000/svg";
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent?.appendChild(node);
  return node;
}
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const capital = (text) => text.replace(/^[a-z]/, (letter) => letter.toUpperCase());
const show = (x) => (x === 0 ? "0" : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4 ? +x.toPrecision(3) + "" : x.toExponential(2));
const nearest = (grid, value) => grid.reduce((best, x, i) =>
  (Math.abs(Math.log(x / value)) < Math.abs(Math.log(grid[best] / value)) ? i : best), 0);
const unique = () => "rm" + Math.random().toString(36).slice(2);

// A label, a range input and its reading, in one row. JupyterLab's command mode takes the arrow keys of an input that
// does not carry the mark itself.
function sliderRow(parent, name, label, range) {
  const id = unique(), row = make("div", { class: "rm-row" }, parent);
  make("label", { for: id }, row, label);
  const input = make("input", { type: "range", id, "data-name": name, "data-lm-suppress-shortcuts": "true" }, row);
  Object.assign(input, range);
  return { input, output: make("output", { for: id }, row) };
}

// Powers of ten between two numbers, at most `most` of them, with their labels; the two ends if there is but one.
function decades(from, to, most = 7) {
  const first = Math.ceil(Math.log10(from) - 1e-6), last = Math.floor(Math.log10(to) + 1e-6), found = [];
  for (let e = last; e >= first; e -= Math.ceil((last - first + 1) / most)) found.push([10 ** e, e > -3 && e < 3 ? 10 ** e : `10^${e < 0 ? "−" + -e : e}`]);
  return found.length > 1 ? found : [[from, show(from)], [to, show(to)]];
}
function tick(parent, x, y, anchor, text) {
  const node = make("text", { x, y, "text-anchor": anchor }, parent);
  const [base, power] = String(text).split("^");
  make("tspan", {}, node, base);
  if (power) make("tspan", { dy: -4, "font-size": 9 }, node, power);
}
// The frame of a plot, with the names of its axes.
function frame(parent, { left, top, width, height }, below, beside) {
  make("rect", { class: "rm-frame", x: left, y: top, width, height, fill: "none" }, parent);
  tick(parent, left + width / 2, top + height + 38, "middle", below);
  const y = top + height / 2;
  make("text", { x: 13, y, "text-anchor": "middle", transform: `rotate(-90 13 ${y})` }, parent, beside);
}
