// The numbers of torch.randn(count, generator=torch.Generator().manual_seed(seed)) on a processor,
// so that a seed draws here what it draws in `limner generate`; they differ by some 1e-6, because
// logarithms and cosines are rounded otherwise.
class Noise {
  // Mersenne Twister MT19937 (Matsumoto & Nishimura 1998); of the seed torch uses the low 32 bits.
  constructor(seed) {
    const state = this.state = new Uint32Array(624);
    state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) {
      const before = state[i - 1] ^ (state[i - 1] >>> 30);
      state[i] = Math.imul(before, 1812433253) + i;
    }
    this.used = 624;
  }

  bits() {
    const state = this.state;
    if (this.used === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.used = 0;
    }
    let y = state[this.used++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // `count` normal numbers, at least 16: 24 bits make a uniform one, and 16 of these are turned at
  // once (Box & Muller 1958), the first 8 being radii and the others angles. What is left over at
  // the end is drawn again together with the numbers before it. (ATen, DistributionTemplates.h.)
  normal(count) {
    const out = new Float32Array(count);
    const fill = from => {
      for (let i = from; i < count; i++) out[i] = (this.bits() & 0xffffff) / 0x1000000;
    };
    const turn = from => {
      for (let i = from; i < from + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - out[i])), angle = 2 * Math.PI * out[i + 8];
        out[i] = radius * Math.cos(angle);
        out[i + 8] = radius * Math.sin(angle);
      }
    };
    fill(0);
    for (let i = 0; i + 16 <= count; i += 16) turn(i);
    if (count % 16) {
      fill(count - 16);
      turn(count - 16);
    }
    return out;
  }
}
