// Times and solvers on the path of flow matching, as limner/diffusion has them: x = (1 - s) x_0 + s
// noise, s = time / last. Each is given denoise(x, time) -> x_0 and calls told(i, x_0) after it.
function timesAt(steps, {shift, timestep_power: power, zero_init_steps: skipped}, last) {
  const times = [];
  for (let i = 0; i <= steps; i++) {
    let even = 1 - i / steps;
    if (power !== 1) even = even ** power / (even ** power + (1 - even) ** power);
    times.push(last * shift * even / (1 + (shift - 1) * even));
  }
  times[0] = last;
  return times.slice(skipped);
}

function weighted(a, x, b, y) {
  const out = new Float32Array(x.length);
  for (let i = 0; i < out.length; i++) out[i] = a * x[i] + b * y[i];
  return out;
}

// The step from one time to the next towards x0, which all deterministic solvers share.
function stepped(x, x0, from, to, last) {
  const ratio = to / from;
  return weighted(ratio, x, 1 - to / last - ratio * (1 - from / last), x0);
}

const logSnr = (time, last) => Math.log1p(-time / last) - Math.log(time / last);

const SOLVERS = {
  ddim(denoise, x, times, last, told) {
    for (let i = 0; i + 1 < times.length; i++) {
      const x0 = denoise(x, times[i]);
      told(i, x0);
      x = stepped(x, x0, times[i], times[i + 1], last);
    }
    return x;
  },

  heun(denoise, x, times, last, told) {
    for (let i = 0; i + 1 < times.length; i++) {
      const x0 = denoise(x, times[i]);
      told(i, x0);
      let next = stepped(x, x0, times[i], times[i + 1], last);
      if (times[i + 1] > 0) {
        const share = 0.5 * times[i] / times[i + 1];
        const better = weighted(1 - share, x0, share, denoise(next, times[i + 1]));
        next = stepped(x, better, times[i], times[i + 1], last);
      }
      x = next;
    }
    return x;
  },

  "dpmsolver++"(denoise, x, times, last, told) {
    const snr = times.map(time => logSnr(time, last));
    let previous = x;
    for (let i = 0; i + 1 < times.length; i++) {
      const x0 = denoise(x, times[i]);
      told(i, x0);
      let better = x0;
      if (i > 0 && i < times.length - 2) {
        const share = 0.5 * (snr[i + 1] - snr[i]) / (snr[i] - snr[i - 1]);  // 0 over a step from -inf
        better = weighted(1 + share, x0, -share, previous);
      }
      x = stepped(x, better, times[i], times[i + 1], last);
      previous = x0;
    }
    return x;
  },

  unipc(denoise, x, times, last, told) {
    const snr = times.map(time => logSnr(time, last));
    let begun = x, previous = x, slope = x;
    for (let i = 0; i + 1 < times.length; i++) {
      const x0 = denoise(x, times[i]);
      told(i, x0);
      if (i > 0) {
        const h = snr[i] - snr[i - 1];
        let better = weighted(0.5, previous, 0.5, x0);
        if (i > 1) {
          const before = snr[i - 1] - snr[i - 2];
          const b1 = -1 / Math.expm1(-h) - 1 / h, b2 = -1 / Math.expm1(-h) - 2 * b1 / h;
          const earlier = (b1 - b2) / (1 + before / h), own = b1 - earlier;
          better = weighted(1, weighted(1 - own, previous, own, x0), earlier * h, slope);
        }
        x = stepped(begun, better, times[i - 1], times[i], last);
        slope = weighted(1 / h, x0, -1 / h, previous);
      }
      let better = x0;
      if (i > 0 && i < times.length - 2) better = weighted(1, x0, 0.5 * (snr[i + 1] - snr[i]), slope);
      [begun, previous] = [x, x0];
      x = stepped(x, better, times[i], times[i + 1], last);
    }
    return x;
  },

  ddpm(denoise, x, times, last, told, noise) {
    for (let i = 0; i + 1 < times.length; i++) {
      const x0 = denoise(x, times[i]);
      told(i, x0);
      const sigma = times[i] / last, next = times[i + 1] / last;
      const decay = (1 - sigma) / (1 - next), shrink = (next / sigma) ** 2, fresh = 1 - decay ** 2 * shrink;
      x = weighted(decay * shrink, x, (1 - next) * fresh, x0);
      if (next > 0) x = weighted(1, x, next * Math.sqrt(fresh), noise());
    }
    return x;
  },
};
SOLVERS.euler = SOLVERS.ddim;
