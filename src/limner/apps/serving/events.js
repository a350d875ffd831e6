// The events that the server answers a request with, one on each line.
async function* events(path, asked, signal) {
  try {
    const answer = await fetch(path, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(asked), signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).message);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = "", part; !(part = await reader.read()).done;) {
      const lines = (text + part.value).split("\n");
      text = lines.pop();
      yield* lines.map(line => JSON.parse(line));
    }
  } catch (error) {
    throw error instanceof TypeError ? new Error(t().lost) : error;
  }
}
