// The classifier of rmbook/offline/digits_mlp.py and its fine-tuning, for the reader's browser.
// Everything is float64 and drawn from the same random numbers as in Python, so that losses agree.
const [WIDTH, LAYERS, CLASSES, HIDDEN] = [64, 4, 10, 3];
const [BATCH, EVERY, BETA1, BETA2, EPSILON] = [32, 5, 0.9, 0.999, 1e-8];
const ENTRIES = HIDDEN * WIDTH * WIDTH;  // trainable weights

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
