"use strict";
// What all pages share. Each adds its WORDS in both languages, and inWords(), which shows them.
const COMMON = {
  en: {other: "中文", prompt: "Prompt", seed: "Seed", draw: "Generate"},
  zh: {other: "English", prompt: "提示词", seed: "种子", draw: "生成"},
};
const $ = id => document.getElementById(id);
const kept = {  // throws if storage is disabled
  get: () => { try { return localStorage.getItem("limner-language"); } catch { return null; } },
  set: value => { try { localStorage.setItem("limner-language", value); } catch { /* not saved */ } },
};
let language = kept.get() || (navigator.language.startsWith("zh") ? "zh" : "en");
const t = () => WORDS[language];
const joined = (...words) => Object.fromEntries(["en", "zh"].map(name => [name, Object.assign({}, ...words.map(one => one[name]))]));

$("language").onclick = () => {
  language = language === "en" ? "zh" : "en";
  kept.set(language);
  inWords();
};

// The words of the elements that name one, in the language of the page.
function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  $("language").textContent = t().other;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t()[element.dataset.t];
}

function make(tag, text, properties = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  return Object.assign(element, properties);
}

// Buttons in a place, of [text, what it does].
function chips(place, entries) {
  place.replaceChildren(...entries.map(([text, act]) => make("button", text, {type: "button", onclick: act})));
}

// Prompts to try: one click, or one key, puts them into the field.
function showExamples(texts) {
  chips($("examples"), texts.map(text => [text, () => { $("prompt").value = text; $("prompt").focus(); }]));
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}
