// The front end of Trainer: it trains the classifier of rmbook/offline/digits_mlp.py, twice, in the reader's browser.
// Everything is float64 and drawn from the same random numbers as in Python, so that losses agree.
const [WIDTH, LAYERS, CLASSES, HIDDEN] = [64, 4, 10, 3];
const [BATCH, EVERY, BETA1, BETA2, EPSILON] = [32, 5, 0.9, 0.999, 1e-8];
const ENTRIES = HIDDEN * WIDTH * WIDTH, SHOWN = 50;  // trainable weights; digits of the test set that are drawn

function uniform(stream) {  // mulberry32
  let state = stream >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function unpack(data) {
  const packed = bytes(data.images), images = new Float64Array(2 * packed.length);
  packed.forEach((byte, k) => { images[2 * k] = (byte >> 4) / 15; images[2 * k + 1] = (byte & 15) / 15; });
  const integers = new Int8Array(bytes(data.weights).buffer), parameters = [];
  let place = 0;
  data.scales.forEach((scale, k) => {
    const height = k < 2 * HIDDEN ? WIDTH : CLASSES, size = k % 2 ? height : height * WIDTH;
    parameters.push(Float64Array.from(integers.subarray(place, place + size), (x) => scale * x));
    place += size;
  });
  return { images, labels: Uint8Array.from(data.labels, Number), parameters };
}

// Positions of the trained entries of each hidden matrix; with one seed, denser masks hold sparser ones.
function drawMasks(density, seed) {
  return Array.from({ length: HIDDEN }, (_, layer) => {
    const next = uniform(1000 * seed + layer), chosen = [];
    for (let k = 0; k < WIDTH * WIDTH; k++) if (next() < density) chosen.push(k);
    return Int32Array.from(chosen);
  });
}

// Each layer's input, (examples, in), and the output, (examples, 10), in one flat array each.
function forward(parameters, images) {
  const layers = [images], count = images.length / WIDTH;
  for (let layer = 0; layer < LAYERS; layer++) {
    const weight = parameters[2 * layer], bias = parameters[2 * layer + 1], height = bias.length;
    const input = layers[layer], output = new Float64Array(count * height);
    for (let t = 0; t < count; t++) for (let o = 0; o < height; o++) {
      let sum = bias[o];
      for (let i = 0; i < WIDTH; i++) sum += weight[o * WIDTH + i] * input[t * WIDTH + i];
      output[t * height + o] = layer < HIDDEN && sum < 0 ? 0 : sum;
    }
    layers.push(output);
  }
  return layers;
}

// One run of fine-tuning: step() makes one step, and measure() reads all test digits.
function newRun(task, density, rate, seed) {
  const parameters = task.parameters.map((array) => array.slice()), masks = drawMasks(density, seed);
  const [first, second] = [0, 1].map(() => masks.map((mask) => new Float64Array(mask.length)));
  const next = uniform(1000 * seed + 500), tests = task.images.subarray(task.train * WIDTH);
  const run = { masks, rate, density, losses: [], accuracies: [], read: [], trained: masks.reduce((sum, mask) => sum + mask.length, 0) };
  run.measure = () => {
    if (!run.losses.length && task.start) { run.read = task.start.read; run.accuracies = [...task.start.accuracies]; return; }
    const output = forward(parameters, tests).at(-1), count = tests.length / WIDTH;
    run.read = Array.from({ length: count }, (_, t) => {
      const row = output.subarray(t * CLASSES, (t + 1) * CLASSES);
      return Math.max(0, row.indexOf(Math.max(...row)));
    });
    run.accuracies.push(run.read.filter((digit, t) => digit === task.labels[task.train + t]).length / count);
  };
  run.step = () => {
    const batch = Array.from({ length: BATCH }, () => Math.floor(task.train * next())), images = new Float64Array(BATCH * WIDTH);
    batch.forEach((chosen, t) => images.set(task.images.subarray(chosen * WIDTH, (chosen + 1) * WIDTH), t * WIDTH));
    const layers = forward(parameters, images);
    let flowing = new Float64Array(BATCH * CLASSES), loss = 0;  // the gradient on its way back, (examples, out)
    for (let t = 0; t < BATCH; t++) {
      const row = layers.at(-1).subarray(t * CLASSES, (t + 1) * CLASSES), most = Math.max(...row);
      const total = Math.log(row.reduce((sum, x) => sum + Math.exp(x - most), 0)), label = task.labels[batch[t]];
      loss += total - (row[label] - most);
      for (let c = 0; c < CLASSES; c++) flowing[t * CLASSES + c] = (Math.exp(row[c] - most - total) - (c === label)) / BATCH;
    }
    run.losses.push(loss / BATCH);
    const step = run.losses.length, gradients = [];
    for (let layer = LAYERS - 1; layer >= 0; layer--) {
      const input = layers[layer], height = flowing.length / BATCH, weight = parameters[2 * layer];
      if (layer < HIDDEN) gradients[layer] = Float64Array.from(masks[layer], (k) => {  // of the trained entries only
        const o = k >> 6, i = k & 63;
        let sum = 0;
        for (let t = 0; t < BATCH; t++) sum += flowing[t * height + o] * input[t * WIDTH + i];
        return sum;
      });
      if (!layer) break;
      const back = new Float64Array(BATCH * WIDTH);
      for (let t = 0; t < BATCH; t++) for (let o = 0; o < height; o++) {
        const g = flowing[t * height + o];
        if (g) for (let i = 0; i < WIDTH; i++) if (input[t * WIDTH + i] > 0) back[t * WIDTH + i] += g * weight[o * WIDTH + i];
      }
      flowing = back;
    }
    masks.forEach((mask, layer) => mask.forEach((k, n) => {  // Adam
      const g = gradients[layer][n], m = first[layer][n] = BETA1 * first[layer][n] + (1 - BETA1) * g;
      const v = second[layer][n] = BETA2 * second[layer][n] + (1 - BETA2) * g * g;
      parameters[2 * layer][k] -= rate * m / (1 - BETA1 ** step) / (Math.sqrt(v / (1 - BETA2 ** step)) + EPSILON);
    }));
    if (step % EVERY === 0) run.measure();
  };
  run.measure();
  task.start ??= { read: run.read, accuracies: [...run.accuracies] };  // of the pretrained network, measured once
  return run;
}

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
