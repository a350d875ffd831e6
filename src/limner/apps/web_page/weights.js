// The weights as they lie in the page, to float32.
//
// part: {name, shape, kind, at, scales}; `at` and `scales` are addresses in `bytes`.
//   float32, float16   the numbers
//   int8               whole numbers of -127 to 127, and for each 32 of them a scale (float16)
const GROUP = 32;

function unpacked(bytes, part) {
  const count = part.shape.reduce((a, b) => a * b, 1);
  if (part.kind === "float32") return new Float32Array(bytes, part.at, count);
  if (part.kind === "float16") return Float32Array.from(new Uint16Array(bytes, part.at, count), float16);
  const whole = new Int8Array(bytes, part.at, count), out = new Float32Array(count);
  const scales = new Uint16Array(bytes, part.scales, Math.ceil(count / GROUP));
  for (let group = 0; group < scales.length; group++) {
    const scale = float16(scales[group]), end = Math.min(count, (group + 1) * GROUP);
    for (let i = group * GROUP; i < end; i++) out[i] = whole[i] * scale;
  }
  return out;
}

// The number of its 16 bits (IEEE 754 binary16; never infinite here).
function float16(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction;
}
