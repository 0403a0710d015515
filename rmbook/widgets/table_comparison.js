// The front end of TableComparison: three lists to choose from, one table row a task. Its arithmetic is compare()'s.
const MARKS = ["○", "◐", "●"];

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);

function compare(state, model, row, other) {
  const one = state.rows[model][row], two = state.rows[model][other], T = one.length;
  const repetition = state.spreads.map((s) => 2 * s * s);
  const both = repetition.map((v, k) => v + (one[k] * (100 - one[k]) + two[k] * (100 - two[k])) / state.counts[k]);
  const widths = [repetition, both].map((v) => [...v, mean(v) / T].map((x) => state.quantile * Math.sqrt(x)));
  return [...state.tasks, "mean"].map((task, k) => {
    const [a, b] = k < T ? [one[k], two[k]] : [mean(one), mean(two)];
    const [inner, outer] = [widths[0][k], widths[1][k]], difference = a - b, size = Math.abs(difference);
    return { task, a, b, difference, inner, outer, verdict: size <= inner ? 0 : size <= outer ? 1 : 2 };
  });
}

function draw(state, host) {
  const uid = unique();
  const root = make("div", { class: "rm-figure rmt", role: "group", "aria-label": state.title }, host);
  const controls = make("div", { class: "rmt-controls" }, root);
  const lists = ["model", "row", "minus"].map((name) => {
    const cell = make("div", {}, controls);
    make("label", { for: uid + name }, cell, name);
    // JupyterLab's command mode takes the keys of an element that does not carry this mark itself.
    const list = make("select", { id: uid + name, "data-name": name, "data-lm-suppress-shortcuts": "true" }, cell);
    list.addEventListener("change", () => { if (name === "model") rows(); update(); });
    return list;
  });
  function fill(list, names, chosen) {
    list.textContent = "";
    for (const name of names) make("option", { value: name }, list, name);
    list.value = names.includes(chosen) ? chosen : names[0];
  }
  fill(lists[0], Object.keys(state.rows), state.first[0]);
  const status = make("p", { class: "rm-status rmt-status", role: "status" }, root);
  const table = make("table", {}, make("div", { class: "rmt-scroll", tabindex: 0, role: "region", "aria-label": "differences" }, root));
  make("p", { class: "rmt-legend" }, root, state.legend);

  function rows() {  // those of the chosen model; a choice that it has stays
    [1, 2].forEach((k) => fill(lists[k], Object.keys(state.rows[lists[0].value]), lists[k].value || state.first[k]));
  }
  function update() {
    const [model, row, other] = lists.map((list) => list.value), lines = compare(state, model, row, other);
    const found = [0, 1, 2].map((v) => lines.slice(0, -1).filter((line) => line.verdict === v).length), last = lines.at(-1);
    status.textContent = `${model}, ${row} minus ${other}: of ${state.tasks.length} tasks, ${found[2]} distinguishable, `
      + `${found[1]} on these examples only, ${found[0]} cannot be told. Mean difference ${signed(last.difference)} ± `
      + `${last.inner.toFixed(1)} points (± ${last.outer.toFixed(1)} on other examples): ${state.verdicts[last.verdict]}.`;
    table.textContent = "";
    const head = make("tr", {}, make("thead", {}, table));
    const reach = Math.max(...lines.map((line) => Math.abs(line.difference) + line.outer));
    for (const text of ["task", "row", "minus", "difference", "", "verdict"]) make("th", { scope: "col" }, head, text);
    head.children[4].textContent = `−${reach.toFixed(0)} to +${reach.toFixed(0)} points`;
    const body = make("tbody", {}, table);
    for (const line of lines) {
      const tr = make("tr", line === last ? { class: "rmt-mean" } : {}, body);
      make("th", { scope: "row" }, tr, line.task);
      for (const text of [line.a.toFixed(1), line.b.toFixed(1), signed(line.difference)]) make("td", { class: "rmt-number" }, tr, text);
      bar(make("td", { class: "rmt-plot" }, tr), line, reach);
      make("td", {}, tr, `${MARKS[line.verdict]} ${state.verdicts[line.verdict]}`);
    }
  }
  function bar(cell, { task, difference, inner, outer, verdict }, reach) {
    const svg = make("svg", { viewBox: "-104 -9 208 18", role: "img" }, cell), x = (value) => 100 * value / reach;
    make("title", {}, svg, `${task}: ${signed(difference)}, ± ${inner.toFixed(1)} on these examples, ± ${outer.toFixed(1)} on others`);
    make("path", { d: "M0 -9V9", class: "rmt-zero" }, svg);
    [["rmt-outer", outer], ["rmt-inner", inner]].forEach(([name, half]) =>
      make("path", { d: `M${x(difference - half).toFixed(2)} 0H${x(difference + half).toFixed(2)}`, class: name }, svg));
    const at = x(difference).toFixed(2);
    make("circle", { cx: at, cy: 0, r: 4.2, class: verdict === 2 ? "rmt-full" : "rmt-empty" }, svg);
    if (verdict === 1) make("path", { d: `M${at} -4.2a4.2 4.2 0 0 0 0 8.4z`, class: "rmt-full" }, svg);
  }
  rows();
  update();
}
export default { render: ({ model, el }) => draw(model.get("data"), el) };
