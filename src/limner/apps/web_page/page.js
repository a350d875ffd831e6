const WORDS = joined(COMMON, FORM, {
  en: {
    about: "About this model", opening: "Opening the model ...", ready: "Ready.",
    facts: (m, weights) => `step ${m.step.toLocaleString("en")} · ${millions(m)} parameters, ${weights} · ${m.size} × ${m.size} px`
      + " · draws in this page and sends nothing",
    progress: (done, all) => `${done} of ${all} images`,
    stepsWord: n => `${n} ${n === 1 ? "step" : "steps"}`,
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
    about: "关于这个模型", opening: "正在打开模型……", ready: "可以生成了。",
    facts: (m, weights) => `第 ${m.step.toLocaleString("en")} 步 · ${millions(m)} 参数，${weights} · ${m.size} × ${m.size} 像素`
      + " · 就在本页里生成，什么都不外传",
    progress: (done, all) => `共 ${all} 张，已生成 ${done} 张`,
    stepsWord: n => `${n} 步`,
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
});
const model = JSON.parse($("model").textContent);
const takesGuidance = !model.flow_map || Boolean(model.guidance_range);  // guidance is a setting
const MOST_WORKERS = 8;

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

function inWords() {
  translate();
  tell(status);
  $("name").textContent = document.title = model.name;
  $("facts").textContent = t().facts(model, model.weights);
  $("credits").replaceChildren(...credits().map(sentence => {
    const paragraph = make("p");
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
    return make("a", part, {href: part, rel: "noreferrer"});
  });
}

function fillIn() {
  const sampling = model.sampling;
  $("steps").value = $("known").value = sampling.num_inference_steps;
  $("guidance").value = sampling.guidance_scale;
  $("solver").value = sampling.scheduler_type;
}

const how = asked => [
  `${t().seedWord} ${asked.seed}`,
  t().stepsWord(asked.steps),
  ...(!takesGuidance || asked.guidance === 1 ? [] : [`${t().guidanceWord} ${asked.guidance}`]),
  ...(model.flow_map || asked.solver === model.sampling.scheduler_type ? [] : [asked.solver]),
].join(" · ");

function paint(figure, pixels) {
  const canvas = figure.querySelector("canvas");
  canvas.getContext("2d").putImageData(new ImageData(pixels, model.size, model.size), 0, 0);
  return canvas;
}

async function finish(figure, asked, {pixels, seconds, tokens}) {
  const canvas = paint(figure, pixels), sampling = {...model.sampling, num_inference_steps: asked.steps};
  if (takesGuidance) sampling.guidance_scale = asked.guidance;
  if (!model.flow_map) sampling.scheduler_type = asked.solver;
  const settings = {
    limner_version: model.limner_version, prompt: asked.prompt, seed: asked.seed, model_step: model.step,
    sampling, weights: model.weights,
  };
  const source = await savable(canvas, "limner", JSON.stringify(settings)), picture = new Image();
  picture.alt = asked.prompt || "–";
  picture.src = source;
  await picture.decode();
  canvas.replaceWith(picture);
  const small = figure.querySelector("small"), most = model.text.max_length;
  small.textContent = `${how(asked)} · ${seconds.toFixed(seconds < 1 ? 2 : 1)} ${t().seconds}`;
  if (tokens > most) small.textContent += ` · ${t().cut(tokens, most)}`;
  finished(figure, source, asked, ["again", () => reuse({...asked, known: asked.steps})]);
}

async function draw() {
  const lines = stopping || $("draw").disabled ? null : prompts();
  if (!lines) return;
  const steps = Number((model.flow_map ? $("known") : $("steps")).value);
  const same = {steps, guidance: Number($("guidance").value), solver: $("solver").value};
  const all = lines.flatMap(prompt => Array.from({length: Number($("count").value)}, (_, i) =>
    ({prompt, seed: Number($("seed").value) + i, ...same})));
  const figures = all.map(asked =>
    card(asked.prompt, how(asked), make("canvas", null, {width: model.size, height: model.size})));
  const stop = new Promise((_, reject) => { stopping = () => reject(new DOMException("", "AbortError")); });
  let count = 0;
  tell(() => t().progress(0, all.length));
  await generate(figures, async () => {
    const pictures = all.map(async (asked, i) => {
      const told = ({step, steps, pixels}) => {
        figures[i].querySelector("progress").value = step / steps;
        paint(figures[i], pixels);
      };
      await finish(figures[i], asked, await drawn(asked, told));
      count++;
      tell(() => t().progress(count, all.length));
    });
    try {
      await Promise.race([Promise.all(pictures), stop]);
    } catch (error) {
      // A worker hears nothing while it draws, so that those at work are ended, and begun anew.
      queue.length = 0;
      for (const worker of workers) if (worker.job && worker.job !== "opening") stopped(worker);
      throw error;
    }
    return count;
  });
}

$("draw").disabled = true;
// A student knows some numbers of steps; its guidance was fixed when it was made, or all but a range of scales.
$("known").append(...model.steps.map(number => new Option(number, number)));
$("known").hidden = !model.flow_map;
for (const id of ["steps", "solvers"]) $(id).hidden = model.flow_map;
$("guided").hidden = $("guidance").disabled = !takesGuidance;
$("steps").disabled = model.flow_map;
if (model.guidance_range) {
  [$("guidance").min, $("guidance").max] = model.guidance_range;
  $("guidance").step = "any";
}
$("solver").append(...model.solvers.map(name => new Option(name, name)));
showExamples(model.examples);
fillIn();
inWords();
tell(() => t().opening);
const ready = open().then(
  () => { $("draw").disabled = false; tell(() => t().ready); },
  error => { tell(() => ""); fail(error.message); });
