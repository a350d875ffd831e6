// A worker draws one picture after the other, so that the page stays alive. It is started from a
// blob, and not as a module: on a page that was opened from a file, a browser refuses a module
// without a word. Threads with shared memory would need a server's headers (COOP, COEP), hence a
// worker for each core, with weights of its own.
let painter = null;

onmessage = async ({data: {kind, number, ...asked}}) => {
  try {
    if (kind === "open") {
      const {about, wasm, weights} = asked;
      painter = new Painter(new Network(await Engine.open(wasm, weights, about.parts), about), about);
      postMessage({kind: "ready"});
      return;
    }
    const started = performance.now();
    const send = (what, x0, more) => {
      const pixels = painter.pixels(x0);
      postMessage({kind: what, number, pixels, ...more}, [pixels.buffer]);
    };
    const picture = painter.draw(asked, (step, steps, x0) => send("step", x0, {step, steps}));
    const tokens = painter.tokenizer.encode(asked.prompt).length;
    send("picture", picture, {seconds: (performance.now() - started) / 1000, tokens});
  } catch (error) {
    postMessage({kind: "error", number, message: String(error && error.message || error)});
  }
};
