// A page that generates pictures from a form: form.html. Each adds draw() and fillIn(), which puts the
// model's own settings into the fields.
const FORM = {
  en: {
    promptNote: "One per line. Press Ctrl+Enter to generate.", count: "Images per prompt",
    fresh: "New seed each time", stop: "Stop", more: "Advanced", steps: "Steps",
    guidance: "Guidance scale (1: off)", solver: "Solver", defaults: "Reset to defaults",
    empty: "Enter a prompt. The model only knows what it was trained on: start with words like those of its captions.",
    save: "Save", again: "Reuse settings", seedWord: "seed", drawing: "in progress", stopped: "Stopped.",
    done: (n, s) => `${n} ${n === 1 ? "image" : "images"} in ${s} s`,
  },
  zh: {
    promptNote: "每行一条。按 Ctrl+Enter 生成。", count: "每条生成几张",
    fresh: "每次换新种子", stop: "停止", more: "更多", steps: "步数",
    guidance: "引导强度（1：无）", solver: "求解器", defaults: "模型自己的设置",
    empty: "输入提示词。模型从没见过的东西生成不好：先用与它的图片说明相近的词。",
    save: "保存", again: "沿用设置", seedWord: "种子", drawing: "正在生成", stopped: "已停止。",
    done: (n, s) => `${n} 张图，用时 ${s} 秒`,
  },
};
const millions = m => `${(m.parameters / 1e6).toFixed(1)}M`;
let status = () => "";  // in the language of the page, whichever it is now
let stopping = null;  // stops what is being drawn

function tell(words) {
  status = words;
  $("status").textContent = words();
}

// The prompts of the form; null where a field is not valid.
function prompts() {
  $("error").hidden = true;
  if (!$("form").checkValidity()) $("more").open = true;
  if (!$("form").reportValidity()) return null;
  if ($("fresh").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  const lines = $("prompt").value.split("\n").map(line => line.trim()).filter(Boolean);
  return lines.length ? lines : [""];
}

// The place of a picture that is being drawn: how it is drawn, and what is in its frame.
function card(prompt, how, ...inside) {
  const figure = make("figure"), frame = make("div", null, {className: "frame"});
  const progress = make("progress", null, {value: 0}), caption = make("figcaption", prompt || "–");
  progress.setAttribute("aria-label", `${prompt}, ${t().drawing}`);
  frame.append(...inside, progress);
  caption.append(make("small", how));
  figure.append(frame, caption);
  return figure;
}

// A picture is finished: it can be saved, and more: [word, what it does].
function finished(figure, source, {prompt, seed}, ...acts) {
  figure.querySelector("progress").remove();
  const name = (prompt || "empty").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
  const actions = make("div", null, {className: "actions"});
  const add = (word, element) => { element.dataset.t = word; element.textContent = t()[word]; actions.append(element); };
  add("save", make("a", null, {href: source, download: `${name}-${seed}.png`}));
  for (const [word, act] of acts) add(word, make("button", null, {type: "button", onclick: act}));
  figure.append(actions);
}

// Puts the settings of one picture into the fields, by their ids.
function reuse(values) {
  for (const [id, value] of Object.entries({...values, count: 1})) $(id).value = value;
  $("fresh").checked = false;
  $("prompt").focus();
}

// Shows the cards while `work` draws into them; it returns how many it has finished.
async function generate(figures, work) {
  const began = performance.now();
  $("stop").hidden = false;
  $("empty").hidden = true;
  $("pictures").prepend(...figures);
  try {
    const count = await work();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    tell(() => count ? t().done(count, seconds) : "");
  } catch (error) {
    const isStop = error.name === "AbortError";
    tell(() => isStop ? t().stopped : "");
    if (!isStop) fail(error.message);
  }
  for (const figure of figures) if (figure.querySelector("progress")) figure.remove();
  $("empty").hidden = Boolean($("pictures").children.length);
  $("stop").hidden = true;
  stopping = null;
}

$("form").onsubmit = event => { event.preventDefault(); draw(); };
$("prompt").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); draw(); }
};
$("stop").onclick = () => stopping && stopping();
$("defaults").onclick = () => fillIn();
