// A PNG with the settings that drew it, in the text that `limner generate` writes, too.
const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

// PNG bytes with one more chunk of international text (iTXt), after the header of 33 bytes.
function withText(png, key, text) {
  const body = new TextEncoder().encode(`iTXt${key}\0\0\0\0\0${text}`), chunk = new Uint8Array(body.length + 8);
  const view = new DataView(chunk.buffer), crc = body.reduce((sum, byte) => CRC[(sum ^ byte) & 255] ^ (sum >>> 8), -1);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(body.length + 4, ~crc);
  return new Blob([png.subarray(0, 33), chunk, png.subarray(33)], {type: "image/png"});
}

// A canvas as a data: URL of such a PNG.
async function savable(canvas, key, text) {
  const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
  const bytes = new Uint8Array(await blob.arrayBuffer()), reader = new FileReader();
  return new Promise((done, fail) => {
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(withText(bytes, key, text));
  });
}
