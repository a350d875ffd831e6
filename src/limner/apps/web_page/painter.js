// A prompt to a picture: noise from the seed, a solver's steps, guidance, pixels.
class Painter {
  constructor(network, about) {
    Object.assign(this, {network, about});
    this.tokenizer = new Tokenizer(about.tokenizer, about.text.max_length);
  }

  // asked: {prompt, seed, steps, guidance, solver}; told(step, steps, x_0) is called after each step.
  // Returns the picture, [3, size, size] of about -1 to 1.
  draw(asked, told) {
    const {sampling, size, timesteps: last, flow_map: student} = this.about, count = 3 * size * size;
    const text = this.network.read(this.tokenizer.read(asked.prompt));
    const times = timesAt(asked.steps, sampling, last), stream = new Noise(asked.seed);
    const noise = () => stream.normal(count);
    let denoise;
    if (student) {  // it is told how long its step is, and has learned what guidance does
      const spans = new Map(times.slice(0, -1).map((time, i) => [time, time - times[i + 1]]));
      denoise = (x, time) => this.clean(x, time,
        this.network.predict(x, time, spans.get(time), [text], asked.guidance)[0]);
    } else {
      const empty = this.network.read(this.tokenizer.read("")), scale = asked.guidance;
      const [low, high] = sampling.guidance_interval.map(share => share * last);
      denoise = (x, time) => {
        const guided = scale !== 1 && low <= time && time <= high;
        const seen = this.network.predict(x, time, 0, guided ? [text, empty] : [text])
          .map(output => this.clean(x, time, output));
        return guided ? weighted(scale, seen[0], 1 - scale, seen[1]) : seen[0];
      };
    }
    const solve = SOLVERS[student ? "ddim" : asked.solver];
    return solve(denoise, noise(), times, last, (i, x0) => told(i + 1, times.length - 1, x0), noise);
  }

  // What the network's output says of the picture x_0 (limner/diffusion/objective.py).
  clean(x, time, output) {
    const sigma = Math.fround(time / this.about.timesteps);
    if (this.about.prediction_type === "sample") return output;
    if (this.about.prediction_type === "velocity") return weighted(1, x, -sigma, output);
    const alpha = Math.max(0.05, 1 - sigma);
    return weighted(1 / alpha, x, -sigma / alpha, output);
  }

  // RGBA of a picture, rounded as torch does: half to even.
  pixels(x) {
    const count = this.about.size ** 2, out = new Uint8ClampedArray(4 * count);
    for (let i = 0; i < count; i++) {
      for (let channel = 0; channel < 3; channel++) {
        const clamped = Math.min(1, Math.max(-1, x[channel * count + i]));
        out[4 * i + channel] = Math.fround(Math.fround(clamped + 1) * 127.5);  // it rounds like this
      }
      out[4 * i + 3] = 255;
    }
    return out;
  }
}
