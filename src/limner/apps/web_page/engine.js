// The layers of a network over one memory and one matrix product in WebAssembly.
//
// A place is an index into `engine.numbers`, where a matrix begins, row by row. The product works
// on four rows and eight columns at a time, so rooms have rows to spare, and weights columns.
const up = (count, to) => Math.ceil(count / to) * to;
const silu = x => x / (1 + Math.exp(-x));

class TooSmall extends Error {}

class Engine {
  // wasm: bytes of matmul.wat; bytes, parts: the weights (see weights.js)
  static async open(wasm, bytes, parts) {
    const engine = new Engine();
    let count = 1 << 20;
    for (const {shape: [rows, columns = 1]} of parts) count += up(rows, 8) * columns + 16;
    engine.memory = new WebAssembly.Memory({initial: Math.ceil(count * 4 / 65536)});
    engine.numbers = new Float32Array(engine.memory.buffer);
    engine.used = 16;
    const {instance} = await WebAssembly.instantiate(wasm, {page: {memory: engine.memory}});
    engine.matmul = instance.exports.matmul;
    engine.weights = new Map();
    for (const part of parts) engine.keep(part, unpacked(bytes, part));
    engine.base = engine.used;
    return engine;
  }

  // A layer's matrix [outputs, inputs] is kept as [inputs, outputs], the way the product reads it.
  keep({name, shape}, values) {
    if (shape.length !== 2 || !name.endsWith(".weight") || name === "text_encoder.embedding.weight") {
      const at = this.room(values.length);
      this.numbers.set(values, at);
      this.weights.set(name, {at, length: values.length});
      return;
    }
    const [outputs, inputs] = shape, width = up(outputs, 8), at = this.room(inputs * width);
    for (let o = 0; o < outputs; o++)
      for (let i = 0; i < inputs; i++) this.numbers[at + i * width + o] = values[o * inputs + i];
    this.weights.set(name, {at, inputs, outputs, width});
  }

  at(name) { return this.weights.get(name).at; }

  has(name) { return this.weights.has(name); }

  room(count) {
    const at = this.used;
    this.used += up(count, 16);
    if (this.used > this.numbers.length) throw new TooSmall();
    return at;
  }

  // What `work` returns, which takes rooms and lets go of them at the end. Memory grows only between
  // two attempts, because all views of it end with that.
  run(work) {
    for (;;) {
      this.used = this.base;
      try {
        return work();
      } catch (error) {
        if (!(error instanceof TooSmall)) throw error;
        this.memory.grow(Math.ceil(this.numbers.length * 4 / 65536 / 2));
        this.numbers = new Float32Array(this.memory.buffer);
      }
    }
  }

  // The same within `run`: rooms that were taken since are free again.
  passing(work) {
    const before = this.used, result = work();
    this.used = before;
    return result;
  }

  // The place of a copy of numbers that lie outside; rows are for a product that reads them.
  put(values, rows = 1) {
    const at = this.room(values.length / rows * up(rows, 4));
    this.numbers.set(values, at);
    return at;
  }

  copy(at, count) { return this.numbers.slice(at, at + count); }

  // x [rows, inputs] -> [rows, outputs]
  linear(x, rows, name) {
    const {at, inputs, outputs, width} = this.weights.get(`${name}.weight`), f = this.numbers;
    const out = this.room(up(rows, 4) * width);
    this.matmul(x * 4, at * 4, out * 4, up(rows, 4), inputs, width);
    if (width !== outputs)
      for (let i = 1; i < rows; i++) f.copyWithin(out + i * outputs, out + i * width, out + i * width + outputs);
    const bias = this.weights.get(`${name}.bias`);
    if (bias)
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < outputs; j++) f[out + i * outputs + j] += f[bias.at + j];
    return out;
  }

  // A layer for one row outside, [inputs] -> [outputs].
  apply(values, name) {
    return this.passing(() => {
      const {outputs} = this.weights.get(`${name}.weight`);
      return this.copy(this.linear(this.put(values, 1), 1, name), outputs);
    });
  }

  // Rows over their root mean square, times weights at a place (or as they are).
  norm(x, rows, width, weight) {
    const f = this.numbers, out = this.room(up(rows, 4) * width);
    for (let i = 0; i < rows; i++) {
      const from = x + i * width, to = out + i * width, factor = this.overRootMeanSquare(from, width);
      for (let j = 0; j < width; j++)
        f[to + j] = f[from + j] * factor * (weight === undefined ? 1 : f[weight + j]);
    }
    return out;
  }

  overRootMeanSquare(at, width) {
    const f = this.numbers;
    let sum = 0;
    for (let j = 0; j < width; j++) sum += f[at + j] * f[at + j];
    return 1 / Math.sqrt(sum / width + 1e-6);
  }

  // Feed-forward with a gate.
  swiglu(x, rows, name) {
    const f = this.numbers, both = this.linear(x, rows, `${name}.gate_and_value`);
    const width = this.weights.get(`${name}.out.weight`).inputs, inner = this.room(up(rows, 4) * width);
    for (let i = 0; i < rows; i++) {
      const gate = both + i * 2 * width, value = gate + width, to = inner + i * width;
      for (let j = 0; j < width; j++) f[to + j] = silu(f[gate + j]) * f[value + j];
    }
    return this.linear(inner, rows, `${name}.out`);
  }

  // x += y
  add(x, y, count) {
    const f = this.numbers;
    for (let i = 0; i < count; i++) f[x + i] += f[y + i];
  }

  // Softmax attention of one head: q [rows, width], k [width, up(keys, 8)], v [up(keys, 8),
  // up(width, 8)] -> rows of `stride` numbers at `out`.
  attend(q, k, v, rows, keys, width, out, stride) {
    this.passing(() => {
      const f = this.numbers, all = up(keys, 8), wide = up(width, 8), scale = 1 / Math.sqrt(width);
      const scores = this.room(up(rows, 4) * all), mixed = this.room(up(rows, 4) * wide);
      f.fill(0, v + keys * wide, v + all * wide);  // what is to spare must not be NaN
      this.matmul(q * 4, k * 4, scores * 4, up(rows, 4), width, all);
      for (let i = 0; i < rows; i++) {
        const row = scores + i * all;
        let largest = -Infinity, sum = 0;
        for (let j = 0; j < keys; j++) largest = Math.max(largest, f[row + j]);
        for (let j = 0; j < keys; j++) sum += f[row + j] = Math.exp((f[row + j] - largest) * scale);
        for (let j = 0; j < keys; j++) f[row + j] /= sum;
        f.fill(0, row + keys, row + all);
      }
      this.matmul(scores * 4, v * 4, mixed * 4, up(rows, 4), all, wide);
      for (let i = 0; i < rows; i++)
        f.copyWithin(out + i * stride, mixed + i * wide, mixed + i * wide + width);
    });
  }
}
