// The front end of Trainer: two runs of digits_mlp.js beside each other, which stands in front of this script.
const SHOWN = 50;  // digits of the test set that are drawn

function draw(model, host) {
  const data = model.get("data"), STEPS = data.steps, task = { ...unpack(data), train: data.train };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const root = make("div", { class: "rm-figure rmd", role: "group", "aria-label": data.title }, host);
  const TITLES = ["Full fine-tuning", "Random mask"], finished = [];  // runs that have ended, for the last chart

  // ---- controls: two sliders in twentieths of a decade, and three buttons
  const slider = (name, label, low) => {
    const { input, output } = sliderRow(root, name, label, { min: 20 * low, max: 0, step: 1 });
    const self = { input, output, set(value) { self.value = value; input.value = Math.round(20 * Math.log10(value)); } };
    input.addEventListener("input", () => { self.value = +(10 ** (input.value / 20)).toPrecision(3); changed(); });
    self.set(model.get(name));
    return self;
  };
  const density = slider("density", "mask's density", -2), rate = slider("learning_rate", "learning rate", -4);
  const buttons = make("div", { class: "rmd-buttons" }, root);
  const button = (text, action) => { const node = make("button", { type: "button" }, buttons, text); node.addEventListener("click", action); return node; };
  const train = button("Train", () => (running ? pause() : start())), reset = button("Reset", () => restart(false));
  button("Another mask", () => { seed += 1; restart(false); tell(`Mask ${seed + 1} is drawn.`); });
  const status = make("p", { class: "rm-status rmd-status", role: "status", "aria-live": "polite" }, root);

  // ---- a window for each of the two: the mask, the digits, what is read
  const windows = make("div", { class: "rmd-windows" }, root);
  const panels = TITLES.map((title, side) => {
    const box = make("section", { class: `rmd-window rmd-side${side}`, "aria-label": title }, windows);
    make("b", {}, box, title);
    const size = make("p", { class: "rmd-size" }, box);
    const mask = make("canvas", { width: 3 * 128 + 16, height: 128, role: "img" }, box);
    make("p", { class: "rmd-size" }, box, "trained entries of the three hidden layers");
    const digits = make("canvas", { width: 400, height: 200, role: "img" }, box);
    const score = make("p", { class: "rmd-score" }, box);
    return { size, mask, digits, score, seen: [], drawn: 0 };
  });

  // ---- three charts
  const charts = make("div", { class: "rmd-charts", "aria-hidden": "true" }, root), frameBox = { left: 46, top: 8, width: 244, height: 120 };
  const chart = (below, beside) => { const svg = make("svg", { viewBox: "0 0 304 172" }, charts); frame(svg, frameBox, below, beside); return svg; };
  const across = (share) => frameBox.left + frameBox.width * share, down = (share) => frameBox.top + frameBox.height * (1 - share);
  const lossHeight = (loss) => Math.min(1.04, Math.max(0, (Math.log10(loss || 1e-9) + 2) / 4));  // from 0.01 to 100
  const [accuracyChart, lossChart, runChart] = [chart("step", "test digits read (%)"), chart("step", "loss of the batch"), chart("learning rate", "your runs (%)")];
  for (const svg of [accuracyChart, runChart]) for (const y of [0, 50, 100]) level(svg, y / 100, y);
  for (const [value, text] of [[0.01, "0.01"], [0.1, "0.1"], [1, "1"], [10, "10"], [100, "100"]]) level(lossChart, lossHeight(value), text);
  for (const svg of [accuracyChart, lossChart]) for (const x of [0, 0.5, 1]) tick(svg, across(x), 144, "middle", x * STEPS);
  for (let e = -4; e <= 0; e++) tick(runChart, across(1 + e / 4), 144, "middle", e > -3 ? 10 ** e : `10^−${-e}`);
  function level(svg, share, text) {
    make("path", { class: "rm-grid", d: `M${across(0)} ${down(share)}h${frameBox.width}` }, svg);
    tick(svg, frameBox.left - 5, down(share) + 4, "end", text);
  }
  const lines = [accuracyChart, lossChart].map((svg) => TITLES.map((_, side) => make("path", { class: `rmd-line rmd-line${side}` }, svg)));
  const cursor = make("path", { class: "rmd-cursor" }, runChart), dots = make("g", {}, runChart);
  const legend = make("p", { class: "rm-legend" }, root);
  TITLES.forEach((title, side) => {
    const item = make("span", {}, legend), sample = make("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" }, item);
    make("path", { d: "M0 6H30", class: `rmd-line rmd-line${side}` }, sample);
    dot(sample, side, 15, 6);
    item.append(title.toLowerCase());
  });
  make("span", {}, legend, data.note);

  // ---- what happens
  let seed = model.get("seed"), runs = [], running = false, timer, request;
  const percent = (run) => Math.round(100 * run.accuracies.at(-1)) + " %";
  const tell = (text) => { status.textContent = text; };
  const setting = () => `Learning rate ${show(rate.value)}; the mask trains ${runs[1].trained.toLocaleString("en")} of ${ENTRIES.toLocaleString("en")} weights.`;

  function restart(go) {
    pause();
    runs = [newRun(task, 1, rate.value, seed), newRun(task, density.value, rate.value, seed)];
    panels.forEach((panel, side) => drawMask(panel, runs[side]));
    paint();
    tell(`${setting()} Before training, both read ${percent(runs[0])} of ${task.labels.length - task.train} mirrored digits. Press Train.`);
    if (go) start();
  }
  function start() {
    if (runs[0].losses.length >= STEPS) return restart(true);
    running = true;
    train.textContent = "Pause";
    if (runs[0].losses.length === 0) tell(`${setting()} Training …`);
    advance();
  }
  function pause() {
    running = false;
    cancelAnimationFrame(request); clearTimeout(timer);
    train.textContent = "Train";
  }
  function advance() {  // one step a frame; whoever prefers no motion gets the end in one piece
    for (let k = 0; k < (still ? 25 : 1); k++) if (runs[0].losses.length < STEPS) for (const run of runs) run.step();
    const done = runs[0].losses.length;
    if (done % EVERY === 0 && (!still || done === STEPS)) paint();
    if (done === STEPS) finish();
    else if (running && still) timer = setTimeout(advance);
    else if (running) request = requestAnimationFrame(advance);
  }
  function finish() {
    pause();
    runs.forEach((run, side) => {
      const place = [across(1 + Math.log10(run.rate) / 4), down(run.accuracies.at(-1))];
      dot(dots, side, ...place).appendChild(make("title", {}, dots, `${TITLES[side]}, density ${show(run.density)}, learning rate ${show(run.rate)}: ${percent(run)}`));
    });
    const [full, mask] = runs, gains = runs.map((run) => run.accuracies.at(-1) - run.accuracies[0]);
    const lesson = gains[1] < 0.15 && gains[0] > 0.3 ? "The mask has hardly moved: give both a larger learning rate."
      : gains[1] > 0.3 && gains[0] < 0.3 ? "The step that suits the mask is too large for all weights at once."
        : gains[1] > 0.3 ? "Both have learned: how far down, and how far up, does each of them still learn?"
          : gains[0] < 0.15 ? "Neither has learned: this learning rate suits none of them." : "The mask is on its way: go on raising the learning rate.";
    tell(`${setting()} After ${STEPS} steps full fine-tuning reads ${percent(full)} and the mask ${percent(mask)}; before, ${Math.round(100 * full.accuracies[0])} %. ${lesson}`);
    const record = (run) => ({ density: run.density, learning_rate: run.rate, seed, losses: run.losses.map((x) => (isFinite(x) ? x : 1e300)), accuracies: run.accuracies });
    finished.push(...runs.map(record));
    root.dispatchEvent(new CustomEvent("rmd-run", { bubbles: true, detail: finished }));
    model.set("runs", [...finished]); model.save_changes();
  }
  function changed() {
    pause();
    for (const one of [density, rate]) {
      one.output.textContent = show(one.value);
      one.input.setAttribute("aria-valuetext", show(one.value));
    }
    cursor.setAttribute("d", `M${across(1 + Math.log10(rate.value) / 4)} ${frameBox.top}v${frameBox.height}`);
    restart(false);
    timer = setTimeout(() => {
      model.set("density", density.value); model.set("learning_rate", rate.value); model.save_changes();
      if (!still) start();
    }, 400);
  }

  // ---- pictures
  function dot(parent, side, x, y) {
    return side ? make("rect", { class: "rmd-dot1", x: x - 4, y: y - 4, width: 8, height: 8 }, parent) : make("circle", { class: "rmd-dot0", cx: x, cy: y, r: 4.5 }, parent);
  }
  function paint() {
    runs.forEach((run, side) => {
      const panel = panels[side];
      drawDigits(panel, run);
      panel.score.textContent = `${percent(run)} read right, step ${run.losses.length}`;
      const done = run.accuracies.map((value, k) => `${k ? "L" : "M"}${across(k * EVERY / STEPS).toFixed(1)} ${down(value).toFixed(1)}`);
      lines[0][side].setAttribute("d", done.join(""));
      lines[1][side].setAttribute("d", run.losses.map((loss, k) => `${k ? "L" : "M"}${across(k / STEPS).toFixed(1)} ${down(lossHeight(loss)).toFixed(1)}`).join(""));
    });
  }
  function drawMask(panel, run) {
    const { mask, size } = panel;
    if (panel.drawn === ENTRIES && run.trained === ENTRIES) return;  // all of them, as before
    panel.drawn = run.trained;
    const pen = mask.getContext("2d"), style = getComputedStyle(mask);
    pen.clearRect(0, 0, mask.width, mask.height);
    run.masks.forEach((chosen, layer) => {
      pen.fillStyle = style.getPropertyValue("--empty");
      pen.fillRect(layer * 136, 0, 128, 128);
      pen.fillStyle = style.getPropertyValue("--side");
      for (const k of chosen) pen.fillRect(layer * 136 + 2 * (k & 63), 2 * (k >> 6), 2, 2);
    });
    size.textContent = `${run.trained.toLocaleString("en")} weights trained`;
    mask.setAttribute("aria-label", `Trained entries of the three hidden layers: ${run.masks.map((m) => m.length).join(", ")} of ${WIDTH * WIDTH} each.`);
  }
  function drawDigits(panel, run) {  // only those whose reading has changed; a misread one is boxed
    const pen = panel.digits.getContext("2d"), style = getComputedStyle(panel.digits);
    const [ink, wrong] = ["--ink", "--wrong"].map((name) => style.getPropertyValue(name));
    for (let t = 0; t < SHOWN; t++) {
      const right = run.read[t] === task.labels[task.train + t], x = 40 * (t % 10), y = 40 * Math.floor(t / 10);
      if (panel.seen[t] === right) continue;
      panel.seen[t] = right;
      pen.clearRect(x, y, 40, 40);
      pen.strokeStyle = pen.fillStyle = right ? ink : wrong;
      for (let k = 0; k < WIDTH; k++) {
        pen.globalAlpha = task.images[(task.train + t) * WIDTH + k];
        pen.fillRect(x + 4 + 4 * (k % 8), y + 4 + 4 * (k >> 3), 4, 4);
      }
      pen.globalAlpha = 1;
      pen.lineWidth = 2.5;
      if (!right) pen.strokeRect(x + 2.5, y + 2.5, 35, 35);
    }
    panel.digits.setAttribute("aria-label", `${SHOWN} test digits, ${panel.seen.filter((right) => !right).length} of them misread and boxed.`);
  }
  const repaint = () => { panels.forEach((panel, side) => { Object.assign(panel, { seen: [], drawn: 0 }); drawMask(panel, runs[side]); }); paint(); };
  const themes = new MutationObserver(repaint), dark = matchMedia("(prefers-color-scheme: dark)");
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributeFilter: ["data-theme", "data-jp-theme-light"] });
  dark.addEventListener("change", repaint);
  const moved = () => {  // from Python
    if (model.get("density") === density.value && model.get("learning_rate") === rate.value && model.get("seed") === seed) return;
    density.set(model.get("density")); rate.set(model.get("learning_rate")); seed = model.get("seed"); changed();
  };
  for (const name of ["density", "learning_rate", "seed"]) model.on("change:" + name, moved);
  changed(); clearTimeout(timer);
  return () => {
    pause(); themes.disconnect(); dark.removeEventListener("change", repaint);
    for (const name of ["density", "learning_rate", "seed"]) model.off("change:" + name, moved);
    root.remove();
  };
}
export default { render: ({ model, el }) => draw(model, el) };
