"use strict";
const WORDS = {
  en: {
    prompt: "Prompt", promptNote: "One per line. Press Ctrl+Enter to generate.", count: "Images per prompt", seed: "Seed",
    fresh: "New seed each time", draw: "Generate", stop: "Stop", more: "Advanced", steps: "Steps",
    guidance: "Guidance scale (1: off)", solver: "Solver", defaults: "Reset to defaults", about: "About this model",
    empty: "Enter a prompt. The model only knows what it was trained on: start with words like those of its captions.",
    save: "Save", again: "Reuse settings", other: "中文", opening: "Opening the model ...", ready: "Ready.",
    facts: (m, weights) => `step ${m.step.toLocaleString("en")} · ${millions(m)} parameters, ${weights} · ${m.size} × ${m.size} px`
      + " · draws in this page and sends nothing",
    progress: (done, all) => `${done} of ${all} images`,
    done: (n, s) => `${n} ${n === 1 ? "image" : "images"} in ${s} s`,
    stopped: "Stopped.", seedWord: "seed", drawing: "in progress", stepsWord: n => `${n} ${n === 1 ? "step" : "steps"}`,
    guidanceWord: "guidance", seconds: "s",
    cut: (n, most) => `the prompt has ${n} tokens, of which the model read ${most}`,
    old: "This browser is too old for this page: it needs WebAssembly with SIMD and DecompressionStream (Chrome or Edge 97, Firefox 113, Safari 16.4, or newer).",
    failed: "The model could not be opened",
    private: "a private data set", set: name => name, licence: name => ` (licence: ${name})`, and: " and ",
    full: sets => `It was trained from scratch on ${sets}.`,
    lora: (sets, base) => `It was fine-tuned with LoRA from ${base} on ${sets}.`,
    tuned: (sets, base) => `It was fine-tuned from ${base} on ${sets}.`,
    distilled: (sets, base) => `It was distilled from ${base}, to draw in few steps, with captions of ${sets}.`,
    unnamed: "another model", that: "That model", before: (model, sets) => `${model} learned from ${sets}.`,
    unknown: "What came before that was not recorded.",
    license: name => `Licence that fits its data: ${name}.`,
    noLicense: "No licence is stated for the model: ask whoever gave you this page before you use it beyond testing.",
    made: version => `Made by limner export (Limner ${version}).`,
  },
  zh: {
    prompt: "提示词", promptNote: "每行一条。按 Ctrl+Enter 生成。", count: "每条生成几张", seed: "种子",
    fresh: "每次换新种子", draw: "生成", stop: "停止", more: "更多", steps: "步数",
    guidance: "引导强度（1：无）", solver: "求解器", defaults: "模型自己的设置", about: "关于这个模型",
    empty: "输入提示词。模型从没见过的东西生成不好：先用与它的图片说明相近的词。",
    save: "保存", again: "沿用设置", other: "English", opening: "正在打开模型……", ready: "可以生成了。",
    facts: (m, weights) => `第 ${m.step.toLocaleString("en")} 步 · ${millions(m)} 参数，${weights} · ${m.size} × ${m.size} 像素`
      + " · 就在本页里生成，什么都不外传",
    progress: (done, all) => `共 ${all} 张，已生成 ${done} 张`,
    done: (n, s) => `${n} 张图，用时 ${s} 秒`,
    stopped: "已停止。", seedWord: "种子", drawing: "正在生成", stepsWord: n => `${n} 步`,
    guidanceWord: "引导", seconds: "秒",
    cut: (n, most) => `提示词有 ${n} 个词元，模型只读前 ${most} 个`,
    old: "浏览器太旧，打不开本页：需要支持 SIMD 的 WebAssembly 和 DecompressionStream（Chrome 或 Edge 97、Firefox 113、Safari 16.4 或更新的版本）。",
    failed: "模型打不开",
    private: "一个不公开的数据集", set: name => `数据集 ${name}`, licence: name => `（许可：${name}）`, and: "和",
    full: sets => `它在${sets}上从头训练。`,
    lora: (sets, base) => `它以 LoRA 从${base}微调而来，用的是${sets}。`,
    tuned: (sets, base) => `它从${base}微调而来，用的是${sets}。`,
    distilled: (sets, base) => `它由${base}蒸馏而来，几步就能生成一张，用的是${sets}的图片说明。`,
    unnamed: "另一个模型", that: "那个模型", before: (model, sets) => `${model}学自${sets}。`,
    unknown: "再往前没有记录。",
    license: name => `与数据相符的许可：${name}。`,
    noLicense: "没有说明模型的许可：除了试用，使用前请先问给您这个网页的人。",
    made: version => `由 limner export 生成（Limner ${version}）。`,
  },
};
const $ = id => document.getElementById(id);
const kept = {  // throws if storage is disabled
  get: () => { try { return localStorage.getItem("limner-language"); } catch { return null; } },
  set: value => { try { localStorage.setItem("limner-language", value); } catch { /* not saved */ } },
};
const model = JSON.parse($("model").textContent);
const MOST_WORKERS = 8;
let language = kept.get() || (navigator.language.startsWith("zh") ? "zh" : "en");
const t = () => WORDS[language];
const millions = m => `${(m.parameters / 1e6).toFixed(1)}M`;

// ---- the model: workers, one for each core, started when there is work for them ----

const queue = [], workers = new Set();
let opened = null;  // what each worker is given: {about, wasm, weights}
let code = null;  // the address of their program

// base64 of gzip, as it stands in this page, to bytes
async function unzipped(text) {
  const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function open() {
  const wasm = Uint8Array.from(atob($("wasm").textContent), character => character.charCodeAt(0));
  if (!self.DecompressionStream || !self.WebAssembly || !WebAssembly.validate(wasm)) throw new Error(t().old);
  code = URL.createObjectURL(new Blob([$("worker").textContent], {type: "text/javascript"}));
  const weights = await unzipped($("weights").textContent);
  $("weights").remove();
  opened = {about: model, wasm, weights};
  await started();
}

// A new worker; resolves when it has opened the model.
function started() {
  return new Promise((resolve, reject) => {
    const worker = new Worker(code);
    workers.add(worker);
    worker.job = "opening";
    const fail = message => {
      const job = worker.job;
      stopped(worker);
      reject(new Error(`${t().failed}: ${message}`));
      if (job && job.fail) job.fail(new Error(message));
    };
    worker.onerror = event => fail(event.message || "worker");
    worker.onmessage = ({data}) => {
      const job = worker.job;
      if (data.kind === "step") return job.step(data);
      if (data.kind === "error" && job === "opening") return fail(data.message);
      worker.job = null;
      if (data.kind === "ready") resolve();
      if (data.kind === "picture") job.finish(data);
      if (data.kind === "error") job.fail(new Error(data.message));
      assign();
    };
    worker.postMessage({kind: "open", ...opened});
  });
}

function stopped(worker) {
  worker.terminate();
  workers.delete(worker);
}

function assign() {
  for (const worker of workers) {
    if (worker.job || !queue.length) continue;
    worker.job = queue.shift();
    worker.postMessage({kind: "draw", ...worker.job.asked});
  }
  const most = Math.min(MOST_WORKERS, navigator.hardwareConcurrency || 2);
  const opening = [...workers].filter(worker => worker.job === "opening").length;
  if (queue.length > opening && workers.size < most)
    started().catch(error => { if (!workers.size) for (const job of queue.splice(0)) job.fail(error); });
}

// Draws one picture: asked is {prompt, seed, steps, guidance, solver}, step is called with its previews.
function drawn(asked, step) {
  return new Promise((finish, fail) => {
    queue.push({asked, step, finish, fail});
    assign();
  });
}

// ---- the page ----

let status = () => "";  // in the language of the page, whichever it is now

function tell(words) {
  status = words;
  $("status").textContent = words();
}

function inWords() {
  tell(status);
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]"))
    element.textContent = t()[element.dataset.t];
  $("language").textContent = t().other;
  $("name").textContent = document.title = model.name;
  $("facts").textContent = t().facts(model, model.weights);
  $("credits").replaceChildren(...credits().map(sentence => {
    const paragraph = document.createElement("p");
    paragraph.append(...linked(sentence));
    return paragraph;
  }));
}

// Where the model comes from, and what to name when its pictures are shared.
function credits() {
  const {credits, limner_version: version} = model, words = t();
  const sets = data => data.map(({name, license}) =>
    (name ? words.set(name) : words.private) + (license ? words.licence(license) : "")).join(words.and) || words.private;
  const base = credits.before[0], kind = base ? {full: "tuned"}[credits.method] || credits.method : "full";
  const said = [words[kind](sets(credits.data), base && base.model || words.unnamed)];
  for (const before of credits.before) {
    if (before.data.length) said.push(words.before(before.model || words.that, sets(before.data)));
    if (!before.complete) said.push(words.unknown);
  }
  return [
    said.join(language === "en" ? " " : ""),
    ...credits.notes[language],
    credits.license ? words.license(credits.license) : words.noLicense,
    words.made(version),
  ];
}

// Text whose addresses are links.
function linked(text) {
  return text.split(/(https:\/\/[^\s()（），。]+)/).map((part, i) => {
    if (i % 2 === 0) return part;
    const link = document.createElement("a");
    link.href = link.textContent = part;
    link.rel = "noreferrer";
    return link;
  });
}

function fillIn() {
  const sampling = model.sampling;
  $("steps").value = $("known").value = sampling.num_inference_steps;
  $("guidance").value = sampling.guidance_scale;
  $("solver").value = sampling.scheduler_type;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

const how = asked => [
  `${t().seedWord} ${asked.seed}`,
  t().stepsWord(asked.steps),
  ...(model.flow_map || asked.guidance === 1 ? [] : [`${t().guidanceWord} ${asked.guidance}`]),
  ...(model.flow_map || asked.solver === model.sampling.scheduler_type ? [] : [asked.solver]),
].join(" · ");

function card(asked) {
  const figure = document.createElement("figure"), frame = document.createElement("div");
  frame.className = "frame";
  const canvas = document.createElement("canvas"), progress = document.createElement("progress");
  canvas.width = canvas.height = model.size;
  progress.setAttribute("aria-label", `${asked.prompt}, ${t().drawing}`);
  progress.value = 0;
  frame.append(canvas, progress);
  const caption = document.createElement("figcaption"), small = document.createElement("small");
  small.textContent = how(asked);
  caption.append(asked.prompt || "–", small);
  figure.append(frame, caption);
  return figure;
}

function paint(figure, pixels) {
  const canvas = figure.querySelector("canvas");
  canvas.getContext("2d").putImageData(new ImageData(pixels, model.size, model.size), 0, 0);
  return canvas;
}

async function finish(figure, asked, {pixels, seconds, tokens}) {
  const canvas = paint(figure, pixels), sampling = {...model.sampling, num_inference_steps: asked.steps};
  if (!model.flow_map) Object.assign(sampling, {guidance_scale: asked.guidance, scheduler_type: asked.solver});
  const settings = {
    limner_version: model.limner_version, prompt: asked.prompt, seed: asked.seed, model_step: model.step,
    sampling, weights: model.weights,
  };
  const source = await savable(canvas, "limner", JSON.stringify(settings)), picture = new Image();
  picture.alt = asked.prompt || "–";
  picture.src = source;
  await picture.decode();
  canvas.replaceWith(picture);
  figure.querySelector("progress").remove();
  const small = figure.querySelector("small"), most = model.text.max_length;
  small.textContent = `${how(asked)} · ${seconds.toFixed(seconds < 1 ? 2 : 1)} ${t().seconds}`;
  if (tokens > most) small.textContent += ` · ${t().cut(tokens, most)}`;
  const actions = document.createElement("div"), save = document.createElement("a"), again = document.createElement("button");
  actions.className = "actions";
  save.href = source;
  save.download = `${(asked.prompt || "empty").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${asked.seed}.png`;
  again.type = "button";
  for (const [element, word] of [[save, "save"], [again, "again"]]) {
    element.dataset.t = word;
    element.textContent = t()[word];
  }
  again.onclick = () => {
    $("prompt").value = asked.prompt;
    $("seed").value = asked.seed;
    $("fresh").checked = false;
    $("count").value = 1;
    $("steps").value = $("known").value = asked.steps;
    $("guidance").value = asked.guidance;
    $("solver").value = asked.solver;
    $("prompt").focus();
  };
  actions.append(save, again);
  figure.append(actions);
}

let stopping = null;  // stops what is being drawn

async function draw() {
  if (stopping || $("draw").disabled) return;
  $("error").hidden = true;
  if (!$("form").checkValidity()) $("more").open = true;
  if (!$("form").reportValidity()) return;
  if ($("fresh").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  const lines = $("prompt").value.split("\n").map(line => line.trim()).filter(Boolean);
  const steps = Number((model.flow_map ? $("known") : $("steps")).value);
  const same = {steps, guidance: Number($("guidance").value), solver: $("solver").value};
  const all = (lines.length ? lines : [""]).flatMap(prompt =>
    Array.from({length: Number($("count").value)}, (_, i) =>
      ({prompt, seed: Number($("seed").value) + i, ...same})));
  const figures = all.map(card), began = performance.now();
  let finished = 0;
  $("empty").hidden = true;
  $("stop").hidden = false;
  tell(() => t().progress(0, all.length));
  $("pictures").prepend(...figures);
  const stop = new Promise((_, reject) => { stopping = () => reject(new DOMException("", "AbortError")); });
  const pictures = all.map(async (asked, i) => {
    const told = ({step, steps, pixels}) => {
      figures[i].querySelector("progress").value = step / steps;
      paint(figures[i], pixels);
    };
    await finish(figures[i], asked, await drawn(asked, told));
    finished++;
    tell(() => t().progress(finished, all.length));
  });
  try {
    await Promise.race([Promise.all(pictures), stop]);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    tell(() => t().done(finished, seconds));
  } catch (error) {
    // A worker hears nothing while it draws, so that those at work are ended, and begun anew.
    queue.length = 0;
    for (const worker of workers) if (worker.job && worker.job !== "opening") stopped(worker);
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
$("defaults").onclick = fillIn;
$("language").onclick = () => {
  language = language === "en" ? "zh" : "en";
  kept.set(language);
  inWords();
};
// A student knows some numbers of steps; its guidance was fixed when it was made.
$("known").append(...model.steps.map(number => new Option(number, number)));
$("known").hidden = !model.flow_map;
for (const id of ["steps", "guided", "solvers"]) $(id).hidden = model.flow_map;
for (const id of ["steps", "guidance"]) $(id).disabled = model.flow_map;
$("solver").append(...model.solvers.map(name => new Option(name, name)));
$("examples").append(...model.examples.map(text => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.onclick = () => { $("prompt").value = text; $("prompt").focus(); };
  return button;
}));
fillIn();
inWords();
tell(() => t().opening);
const ready = open().then(
  () => { $("draw").disabled = false; tell(() => t().ready); },
  error => { tell(() => ""); fail(error.message); });
