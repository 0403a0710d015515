// The front end of MethodExplorer: a list of measures, a list of runs, and a chart with one line a run, in order.
const short = (value) => Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-2) ? value.toExponential(1) : String(+value.toPrecision(4));

function order(state, measure) {  // numbers of the runs that have the measure, largest first
  const values = state.values[measure];
  return state.runs.map((_, k) => k).filter((k) => values[k] !== null).sort((a, b) => values[b] - values[a]);
}

function draw(state, host) {
  const uid = "rmm" + Math.random().toString(36).slice(2);
  const root = make("div", { class: "rmm", role: "group", "aria-label": state.title }, host);
  const controls = make("div", { class: "rmm-controls" }, root);
  const [measures, runs] = ["measure", "compare with"].map((name) => {
    const cell = make("div", {}, controls);
    make("label", { for: uid + name }, cell, name);
    // JupyterLab's command mode takes the keys of an element that does not carry this mark itself.
    return make("select", { id: uid + name, "data-name": name, "data-lm-suppress-shortcuts": "true" }, cell);
  });
  for (const name in state.measures) make("option", { value: name }, measures, state.measures[name]);
  state.runs.forEach((name) => make("option", { value: name }, runs, name));
  [measures.value, runs.value] = state.first;
  const status = make("p", { class: "rmm-status", role: "status" }, root);
  const frame = make("div", { class: "rmm-scroll", tabindex: 0, role: "region", "aria-label": "runs, in order" }, root);

  function update() {
    const measure = measures.value, values = state.values[measure], halves = state.halves[measure];
    const chosen = state.runs.indexOf(runs.value), ranked = order(state, measure);
    const log = state.logarithmic.includes(measure), scale = log ? Math.log10 : (value) => value;
    const half = (k) => (halves ? halves[k] ?? 0 : 0);
    const ends = ranked.flatMap((k) => [scale(values[k] - half(k)), scale(values[k] + half(k))]);
    const low = log ? Math.min(...ends) : Math.min(0, ...ends), high = Math.max(...ends);
    const x = (value) => 262 + 330 * (scale(value) - low) / (high - low || 1), step = 15, tall = step * ranked.length + 26;
    frame.textContent = "";
    const svg = make("svg", { viewBox: `0 0 600 ${tall}`, role: "img" }, frame);
    make("title", {}, svg, `${state.measures[measure]} of ${ranked.length} runs, largest first`);
    const ticks = log ? Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, k) => 10 ** (Math.ceil(low) + k))
      : [0, 1, 2, 3, 4].map((k) => low + (high - low) * k / 4);
    for (const tick of ticks) {
      make("path", { d: `M${x(tick).toFixed(1)} 18V${tall}`, class: "rmm-grid" }, svg);
      make("text", { x: x(tick).toFixed(1), y: 12, "text-anchor": "middle" }, svg, short(tick));
    }
    if (values[chosen] !== null) make("path", { d: `M${x(values[chosen]).toFixed(1)} 18V${tall}`, class: "rmm-chosen" }, svg);
    ranked.forEach((k, line) => {
      const y = 26 + step * line, mine = k === chosen, row = make("g", mine ? { class: "rmm-mine" } : {}, svg);
      make("title", {}, row, `${state.runs[k]}: ${short(values[k])}${half(k) ? " ± " + short(half(k)) : ""}`);
      make("text", { x: 252, y: y + 4, "text-anchor": "end" }, row, (mine ? "▸ " : "") + state.runs[k]);
      if (half(k)) make("path", { d: `M${x(values[k] - half(k)).toFixed(1)} ${y}H${x(values[k] + half(k)).toFixed(1)}`, class: "rmm-half" }, row);
      make("circle", { cx: x(values[k]).toFixed(1), cy: y, r: 4, class: state.groups[k] === state.groups[chosen] ? "rmm-full" : "rmm-empty" }, row);
    });
    status.textContent = values[chosen] === null ? `${runs.value} has no such number.`
      : `${runs.value}: ${short(values[chosen])} (${state.measures[measure]}), place ${ranked.indexOf(chosen) + 1} of ${ranked.length}.`
        + (halves ? ` ${ranked.filter((k) => k !== chosen && Math.abs(values[k] - values[chosen]) <= Math.hypot(half(k), half(chosen))).length} others are within the interval of the difference.` : "");
  }
  measures.addEventListener("change", update);
  runs.addEventListener("change", update);
  update();
}
export default { render: ({ model, el }) => draw(model.get("data"), el) };
