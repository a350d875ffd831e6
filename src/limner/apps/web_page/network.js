// The network itself: the built-in text encoder (limner/models/text_encoder.py) and the default
// denoiser (limner/models/modern.py), with the ways of the input that a student has beside it
// (limner/models/input_paths.py). Names of weights are those of the checkpoint.
class Network {
  constructor(engine, about) {
    Object.assign(this, {engine, about});
    const {size, patch, hidden, heads} = about, grid = size / patch;
    this.patches = grid * grid;
    this.headWidth = hidden / heads;
    this.positions = sincosPositions(grid, hidden);
    this.rotation = rotationTable(grid, this.headWidth);
  }

  // Token ids (no padding) -> all that the denoiser reads of a text, which no step changes:
  // {length, condition [hidden], keys and values: of each block and head [width, length] and
  // [length, width]}.
  read(ids) {
    return this.engine.run(() => {
      const {engine, about: {hidden, heads, layers, text}} = this, f = engine.numbers;
      const length = ids.length, width = text.width, states = this.encoded(ids);
      const mean = new Float32Array(width);
      for (let i = 0; i < length; i++)
        for (let j = 0; j < width; j++) mean[j] += f[states + i * width + j] / length;
      const condition = engine.apply(mean, "denoiser.text_vector"), keys = [], values = [];
      for (let block = 0; block < layers; block++) {
        engine.passing(() => {
          const both = engine.linear(states, length, `denoiser.blocks.${block}.text_kv`);
          const k = new Float32Array(hidden * length), v = new Float32Array(hidden * length);
          const weight = engine.at(`denoiser.blocks.${block}.norm_k.weight`), w = this.headWidth;
          for (let head = 0; head < heads; head++)
            for (let i = 0; i < length; i++) {
              const at = both + i * 2 * hidden + head * w, factor = engine.overRootMeanSquare(at, w);
              for (let j = 0; j < w; j++) {
                k[(head * w + j) * length + i] = f[at + j] * factor * f[weight + j];
                v[(head * length + i) * w + j] = f[at + hidden + j];
              }
            }
          keys.push(k);
          values.push(v);
        });
      }
      return {length, condition, keys, values};
    });
  }

  // The place of the states [length, width] of a text.
  encoded(ids) {
    const {engine, about: {text: {width, layers, heads}}} = this, f = engine.numbers;
    const length = ids.length, each = width / heads, all = up(length, 8), wide = up(each, 8);
    const table = engine.at("text_encoder.embedding.weight"), positions = engine.at("text_encoder.positions");
    const x = engine.room(up(length, 4) * width);
    for (let i = 0; i < length; i++)
      for (let j = 0; j < width; j++)
        f[x + i * width + j] = f[table + ids[i] * width + j] + f[positions + i * width + j];
    for (let block = 0; block < layers; block++) {
      engine.passing(() => {
        const name = `text_encoder.blocks.${block}`;
        const qkv = engine.linear(
          engine.norm(x, length, width, engine.at(`${name}.norm_attention.weight`)), length, `${name}.qkv`);
        const mixed = engine.room(up(length, 4) * width);
        const q = engine.room(up(length, 4) * each), k = engine.room(each * all), v = engine.room(all * wide);
        for (let head = 0; head < heads; head++) {
          for (let i = 0; i < length; i++)
            for (let j = 0; j < each; j++) {
              const at = qkv + i * 3 * width + head * each + j;
              f[q + i * each + j] = f[at];
              f[k + j * all + i] = f[at + width];
              f[v + i * wide + j] = f[at + 2 * width];
            }
          engine.attend(q, k, v, length, length, each, mixed + head * each, width);
        }
        engine.add(x, engine.linear(mixed, length, `${name}.out`), length * width);
        const normed = engine.norm(x, length, width, engine.at(`${name}.norm_mlp.weight`));
        engine.add(x, engine.swiglu(normed, length, `${name}.mlp`), length * width);
      });
    }
    return engine.norm(x, length, width, engine.at("text_encoder.norm.weight"));
  }

  // One noisy picture [3, size, size] at a time, and for each text the network's output, of the
  // same shape. `span` is the length of the step, which only a student asks for, and `scale` that of
  // guidance, which a student asks for if it has a range of them.
  predict(x, time, span, texts, scale) {
    return this.engine.run(() => {
      const {engine, patches: n, about: {hidden, layers, flow_map: student, guidance_range: range}} = this, f = engine.numbers;
      const patched = this.patchified(x), embedded = engine.linear(patched, n, "denoiser.patch_embedding");
      const when = this.wave(time, "denoiser.time_embedding");
      let paths = null;
      if (student) {
        const length = this.wave(span, "denoiser.span_embedding");
        const strength = range ? this.wave(scale, "denoiser.guidance_embedding") : null;
        for (let j = 0; j < hidden; j++) when[j] += length[j] + (strength ? strength[j] : 0);
        paths = this.inputPaths(patched, embedded, when);
      }
      const tokens = engine.room(up(texts.length * n, 4) * hidden);
      for (let b = 0; b < texts.length; b++)
        for (let i = 0; i < n * hidden; i++)
          f[tokens + b * n * hidden + i] = f[embedded + i] + this.positions[i] + (paths ? paths.read[i] : 0);
      const conditions = texts.map(text => when.map((value, j) => silu(value + text.condition[j])));
      const modulations = conditions.map(condition => engine.apply(condition, "denoiser.modulation"));
      for (let block = 0; block < layers; block++)
        engine.passing(() => this.block(block, tokens, texts, modulations));
      const last = conditions.map(condition => engine.apply(condition, "denoiser.final_layer.modulation"));
      const normed = this.modulated(tokens, last.map(m => [m.subarray(0, hidden), m.subarray(hidden)]));
      const out = engine.linear(normed, texts.length * n, "denoiser.final_layer.linear");
      return texts.map((_, b) => this.unpatchified(out, b, x, paths));
    });
  }

  // tokens [texts, patches, hidden], changed in place; modulations: of each text [6 hidden].
  block(number, tokens, texts, modulations) {
    const {engine, patches: n, about: {hidden}} = this, name = `denoiser.blocks.${number}`;
    const f = engine.numbers, own = engine.at(`${name}.modulation`), rows = texts.length * n;
    const parts = modulations.map(modulation => {
      const sum = modulation.map((value, j) => value + f[own + j]);
      return Array.from({length: 6}, (_, k) => sum.subarray(k * hidden, (k + 1) * hidden));
    });
    const qkv = engine.linear(this.modulated(tokens, parts), rows, `${name}.qkv`);
    const mixed = engine.room(up(rows, 4) * hidden);
    texts.forEach((text, b) => this.attention(number, qkv + b * n * 3 * hidden, text, mixed + b * n * hidden));
    this.gated(tokens, engine.linear(mixed, rows, `${name}.out`), parts.map(part => part[2]));
    const normed = this.modulated(tokens, parts.map(part => part.slice(3)));
    this.gated(tokens, engine.swiglu(normed, rows, `${name}.mlp`), parts.map(part => part[5]));
  }

  // The picture's tokens look at [text ; picture]: qkv [patches, 3 hidden] -> out [patches, hidden].
  attention(block, qkv, text, out) {
    const {engine, patches: n, headWidth: width, about: {hidden, heads}} = this, f = engine.numbers;
    const keys = text.length + n, all = up(keys, 8), wide = up(width, 8);
    const weights = ["norm_q", "norm_k"].map(norm => engine.at(`denoiser.blocks.${block}.${norm}.weight`));
    engine.passing(() => {
      const q = engine.room(up(n, 4) * width), k = engine.room(width * all), v = engine.room(all * wide);
      for (let head = 0; head < heads; head++) {
        const [textKeys, textValues] = [text.keys[block], text.values[block]];
        for (let j = 0; j < width; j++)
          for (let i = 0; i < text.length; i++) {
            f[k + j * all + i] = textKeys[(head * width + j) * text.length + i];
            f[v + i * wide + j] = textValues[(head * text.length + i) * width + j];
          }
        for (let i = 0; i < n; i++) {
          const at = qkv + i * 3 * hidden + head * width, there = text.length + i;
          this.turned(i, at, weights[0], q + i * width, 1);
          this.turned(i, at + hidden, weights[1], k + there, all);
          f.copyWithin(v + there * wide, at + 2 * hidden, at + 2 * hidden + width);
        }
        engine.attend(q, k, v, n, keys, width, out + head * width, hidden);
      }
    });
  }

  // A query or key of patch `i`, normed and turned by its place; its numbers are `stride` apart.
  turned(i, from, weight, to, stride) {
    const {engine, headWidth, rotation: {cosines, sines}} = this, f = engine.numbers;
    const factor = engine.overRootMeanSquare(from, headWidth), half = headWidth / 2;
    for (let j = 0; j < half; j++) {
      const a = f[from + j] * factor * f[weight + j];
      const b = f[from + half + j] * factor * f[weight + half + j];
      const c = cosines[i * half + j], s = sines[i * half + j];
      f[to + j * stride] = a * c - b * s;
      f[to + (half + j) * stride] = a * s + b * c;
    }
  }

  // Normed tokens, moved and scaled by each text's [shift, scale].
  modulated(tokens, parts) {
    const {engine, patches: n, about: {hidden}} = this, rows = parts.length * n;
    const f = engine.numbers, out = engine.norm(tokens, rows, hidden);
    for (let i = 0; i < rows; i++) {
      const [shift, scale] = parts[Math.floor(i / n)], row = out + i * hidden;
      for (let j = 0; j < hidden; j++) f[row + j] = f[row + j] * (1 + scale[j]) + shift[j];
    }
    return out;
  }

  // tokens += gate of their text * what a layer says
  gated(tokens, said, gates) {
    const {engine: {numbers: f}, patches: n, about: {hidden}} = this;
    for (let i = 0; i < gates.length * n; i++) {
      const gate = gates[Math.floor(i / n)], row = i * hidden;
      for (let j = 0; j < hidden; j++) f[tokens + row + j] += gate[j] * f[said + row + j];
    }
  }

  // A time, a span, or a guidance scale as a vector [hidden]: waves through two layers.
  wave(value, name) {
    const {engine} = this, width = engine.weights.get(`${name}.mlp.0.weight`).inputs, half = width / 2;
    const waves = new Float32Array(width);
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(Math.fround(value) * Math.fround(Math.exp(-Math.log(10000) * i / half)));
      waves[i] = Math.cos(angle);
      waves[half + i] = Math.sin(angle);
    }
    return engine.apply(engine.apply(waves, `${name}.mlp.0`).map(silu), `${name}.mlp.2`);
  }

  // What a student reads, and puts out, past the blocks: {read [patches, hidden], past [patches,
  // p p C], share [C]}.
  inputPaths(patched, embedded, when) {
    const {engine, patches: n, about: {hidden, patch}} = this, f = engine.numbers, width = 3 * patch * patch;
    const name = "denoiser.input_paths", active = when.map(silu);
    const of = layer => engine.apply(active, `${name}.${layer}`);
    const gain = of("gain"), gate = of("reading_gate"), pastGate = of("bypass_gate");
    return engine.passing(() => {
      const reading = engine.linear(patched, n, `${name}.reading`), bypass = engine.linear(patched, n, `${name}.bypass`);
      const read = new Float32Array(n * hidden), past = new Float32Array(n * width);
      for (let i = 0; i < read.length; i++)
        read[i] = f[embedded + i] * gain[i % hidden] + f[reading + i] * gate[i % hidden];
      for (let i = 0; i < past.length; i++) past[i] = f[bypass + i] * pastGate[i % width];
      return {read, past, share: of("share")};
    });
  }

  // [3, size, size] -> the place of [patches, 3 p p], channels outermost
  patchified(x) {
    const {engine, patches: n, about: {patch}} = this, at = engine.room(up(n, 4) * 3 * patch * patch);
    this.everyNumber((pixel, i, channel, row, column) => {
      engine.numbers[at + (i * 3 + channel) * patch * patch + row * patch + column] = x[pixel];
    });
    return at;
  }

  // [texts, patches, p p 3], channels innermost -> text b's [3, size, size]
  unpatchified(out, b, x, paths) {
    const {engine: {numbers: f}, patches: n, about: {patch, size}} = this, width = 3 * patch * patch;
    const picture = new Float32Array(3 * size * size);
    this.everyNumber((pixel, i, channel, row, column) => {
      const j = i * width + (row * patch + column) * 3 + channel;
      picture[pixel] = f[out + b * n * width + j];
      if (paths) picture[pixel] += paths.past[j] + paths.share[channel] * x[pixel];
    });
    return picture;
  }

  // Calls visit(index in [3, size, size], patch, channel, row and column in the patch) for each.
  everyNumber(visit) {
    const {size, patch} = this.about, grid = size / patch;
    for (let channel = 0; channel < 3; channel++)
      for (let y = 0; y < size; y++)
        for (let x = 0; x < size; x++) {
          const i = Math.floor(y / patch) * grid + Math.floor(x / patch);
          visit((channel * size + y) * size + x, i, channel, y % patch, x % patch);
        }
  }
}

// Row and column of every patch; the picture is 16 units wide at any size.
function gridPositions(grid) {
  return Array.from({length: grid * grid}, (_, i) =>
    [(Math.floor(i / grid) + 0.5) * 16 / grid, (i % grid + 0.5) * 16 / grid]);
}

// [patches, width]: waves of the column, then of the row.
function sincosPositions(grid, width) {
  const quarter = Math.floor(width / 4), out = new Float32Array(grid * grid * width);
  gridPositions(grid).forEach(([row, column], i) => {
    for (let j = 0; j < quarter; j++) {
      const speed = 10000 ** (-j / quarter);
      const waves = [Math.sin(column * speed), Math.cos(column * speed), Math.sin(row * speed), Math.cos(row * speed)];
      waves.forEach((value, k) => { out[i * width + k * quarter + j] = value / Math.SQRT2; });
    }
  });
  return out;
}

// Cosines and sines of the rotary positions, each [patches, width / 2]: rows, then columns.
function rotationTable(grid, width) {
  const half = width / 2, pairs = width / 4;
  const cosines = new Float32Array(grid * grid * half), sines = new Float32Array(grid * grid * half);
  gridPositions(grid).forEach((place, i) => {
    place.forEach((value, axis) => {
      for (let j = 0; j < pairs; j++) {
        const angle = value * 100 ** (-j / pairs), at = i * half + axis * pairs + j;
        cosines[at] = Math.cos(angle);
        sines[at] = Math.sin(angle);
      }
    });
  });
  return {cosines, sines};
}
