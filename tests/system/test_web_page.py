"""`limner export --format web`: a page that draws what `limner generate` does, from the disk."""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Page, browser_or_skip, open_browser
from made_up import made_up_checkpoint, made_up_in_latents
from web_pages import apart, drawn, opened
from written_texts import captions_of_many_scripts, texts_of_all_scripts

from limner import ImageGenerator
from limner.apps.publishing.export import export
from limner.apps.web_page.assemble import assemble
from limner.apps.web_page.build import export_web_page
from limner.apps.web_page.weights import PRECISIONS
from limner.cli import main
from limner.config import SamplingConfig
from limner.diffusion.noise_schedule import FlowMatchingSchedule
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.inference.sampling_settings import inference_timesteps
from limner.inference.saving import how_drawn
from limner.text.tokenizer import CaptionTokenizer

PROMPTS = ["a small red circle", "红苹果", "Two BLUE  squares", ""]
STUDENT = ("model.flow_map=true", "sampling.scheduler_type=ddim", "sampling.guidance_scale=1.0")
KINDS = {
    # As the default settings have it, and with a part of the steps guided.
    "velocity": (
        *("scheduler.prediction_type=velocity", "sampling.scheduler_type=dpmsolver++"),
        *("sampling.num_inference_steps=4", "sampling.guidance_scale=2.5"),
        *("sampling.guidance_interval=[0.3, 0.9]", "sampling.timestep_power=1.3"),
        "sampling.shift=1.5",
    ),
    "sample": (
        *("scheduler.prediction_type=sample", "sampling.scheduler_type=ddim"),
        *("sampling.num_inference_steps=3", "sampling.zero_init_steps=1"),
    ),
    # Sizes that no layer of the product fits: 12 numbers of a patch, heads of 12, 108 of a picture.
    "odd": (
        *("scheduler.prediction_type=epsilon", "scheduler.objective=flow_matching"),
        "sampling.scheduler_type=heun",
        *("data.image_size=6", "model.patch_size=2", "model.hidden_size=60", "model.num_heads=5"),
        "sampling.guidance_scale=1.2",
    ),
    "student": STUDENT,
    "guided student": (
        *("model.flow_map=true", "distill.guidance_scale=[1.5, 4]", "sampling.guidance_scale=2.25"),
    ),
}
Exported = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The name of a kind of model, and a precision -> a checkpoint, and its page."""
    home = tmp_path_factory.mktemp("pages")

    @functools.cache
    def checkpoint(kind: str) -> Path:
        return made_up_checkpoint(home / kind / "checkpoint-3", *KINDS[kind])

    @functools.cache
    def of(kind: str, precision: str = "float32") -> tuple[Path, Path]:
        folder = checkpoint(kind)
        page = home / kind / f"{precision} ü 图.html"
        return folder, export_web_page(folder, page, precision)

    return of


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(browser_or_skip(), tmp_path_factory.mktemp("profile")) as page:
        yield page


# What is drawn


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_generate_draws(browser: Page, exported: Exported, kind: str) -> None:
    checkpoint, page = exported(kind)
    opened(browser, page)
    prompts = PROMPTS[:3]
    here = [image for seed in (0, 2**40 + 7) for image in drawn(browser, prompts, seed)]
    generator = ImageGenerator(checkpoint, device="cpu")
    there = [
        image for seed in (0, 2**40 + 7) for image in generator.generate_batch(prompts, seeds=seed)
    ]
    assert apart(here, there)[0] <= 1
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("blob:")] == []


@pytest.mark.parametrize("solver", ["ddpm", "euler", "unipc"])
def test_the_other_solvers_are_those_of_limner(
    browser: Page, exported: Exported, solver: str
) -> None:
    checkpoint, page = exported("velocity")
    opened(browser, page)
    here = drawn(browser, PROMPTS[:1], 5, steps=6, guidance=1.5, solver=solver)
    there = ImageGenerator(checkpoint, solver, device="cpu").generate_batch(
        PROMPTS[:1], num_inference_steps=6, guidance_scale=1.5, seeds=5
    )
    assert apart(here, there)[0] <= 1


@pytest.mark.parametrize(("precision", "decibels"), [("int8", 35.0), ("float16", 55.0)])
def test_less_precise_weights_draw_nearly_the_same(
    browser: Page, exported: Exported, precision: str, decibels: float
) -> None:
    for kind in ("velocity", "student"):
        checkpoint, page = exported(kind, precision)
        opened(browser, page)
        here = drawn(browser, PROMPTS[:3], 3)
        there = ImageGenerator(checkpoint, device="cpu").generate_batch(PROMPTS[:3], seeds=3)
        assert apart(here, there)[1] >= decibels
        assert page.stat().st_size < exported(kind)[1].stat().st_size * 0.75


def test_a_student_draws_in_the_steps_that_it_knows(browser: Page, exported: Exported) -> None:
    checkpoint, page = exported("student")
    opened(browser, page)
    assert browser.ask("[...$('known').options].map(o => o.value)") == ["1", "2", "4", "8"]
    assert browser.ask("[$('guided'), $('steps')].every(e => e.hidden)") is True
    generator = ImageGenerator(checkpoint, device="cpu")
    for steps in (1, 4, 8):
        here = drawn(browser, PROMPTS[:2], 9, known=steps)
        there = generator.generate_batch(PROMPTS[:2], num_inference_steps=steps, seeds=9)
        assert apart(here, there)[0] <= 1


def test_a_student_with_a_range_of_guidance_takes_it(browser: Page, exported: Exported) -> None:
    checkpoint, page = exported("guided student")
    opened(browser, page)
    assert browser.ask("[$('guided'), $('steps'), $('solvers')].map(e => e.hidden)") == [
        *(False, True, True)
    ]
    assert browser.ask("[$('guidance').min, $('guidance').max, $('guidance').value]") == [
        *("1.5", "4", "2.25")
    ]
    generator = ImageGenerator(checkpoint, device="cpu")
    found = {}
    for scale in (1.5, 3.3):
        here = drawn(browser, PROMPTS[:2], 9, known=2, guidance=scale)
        there = generator.generate_batch(PROMPTS[:2], guidance_scale=scale, seeds=9)
        assert apart(here, there)[0] <= 1
        assert how_drawn(here[0])["sampling"]["guidance_scale"] == scale
        found[scale] = here
    assert apart(found[1.5], found[3.3])[0] > 1
    browser.ask("$('guidance').value = 5")
    assert browser.ask("$('form').checkValidity()") is False


def test_a_picture_is_saved_with_how_it_was_drawn(browser: Page, exported: Exported) -> None:
    checkpoint, page = exported("velocity")
    opened(browser, page)
    (image,) = drawn(browser, ["红苹果"], 11, steps=5, guidance=2)
    how = how_drawn(image)
    assert (how["prompt"], how["seed"], how["model_step"]) == ("红苹果", 11, 3)
    again = ImageGenerator(checkpoint, device="cpu").generate_batch(
        [how["prompt"]], seeds=how["seed"], **how["sampling"]
    )
    assert apart([image], again)[0] <= 1
    assert browser.ask("document.querySelector('.actions a').download") == "红苹果-11.png"
    caption = browser.ask("document.querySelector('figcaption').innerText")
    assert "seed 11 · 5 steps · guidance 2" in caption


# What it is made of


def with_source(*names: str) -> str:
    """The page's own programs, to ask one of them a question."""
    return "\n".join(
        files("limner.apps.web_page").joinpath(name).read_text("utf-8") for name in names
    )


def test_prompts_become_the_tokens_of_limner(browser: Page) -> None:
    tokenizer = CaptionTokenizer.learn(captions_of_many_scripts(), 400, 24)
    words = json.loads(tokenizer.tokenizer.to_str())["model"]
    merges = [" ".join(pair) for pair in words["merges"]]
    assert len(merges) > 50
    texts = texts_of_all_scripts(5000)
    asked = {"vocabulary": words["vocab"], "merges": merges}
    found = browser.ask(
        f"(() => {{ {with_source('tokenizer.js')}"
        f"const tokenizer = new Tokenizer({json.dumps(asked)}, 24);"
        f"return {json.dumps(texts)}.map(text => tokenizer.read(text)); }})()"
    )
    wanted = [[i for i in tokenizer(text).tolist() if i] for text in texts]
    assert [t for t, here, there in zip(texts, found, wanted, strict=True) if here != there] == []
    lone = "a \ud800 b"
    (found,) = browser.ask(
        f"(() => {{ {with_source('tokenizer.js')}"
        f"const tokenizer = new Tokenizer({json.dumps(asked)}, 24);"
        f"return ['a \\ud800 b'].map(text => tokenizer.read(text)); }})()"
    )
    assert found == [i for i in tokenizer(lone).tolist() if i]


@pytest.mark.parametrize("count", [16, 108, 3 * 64 * 64])
def test_seeds_give_the_noise_of_torch(browser: Page, count: int) -> None:
    seeds = [0, 1, 2, 42, 1234567, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**53 - 1]
    found = browser.ask(
        f"(() => {{ {with_source('noise.js')} return {seeds}.map(seed => {{"
        f"const noise = new Noise(seed), twice = [noise.normal({count}), noise.normal({count})];"
        "return twice.flatMap(numbers => [...numbers]);"
        "}); })()"
    )
    for seed, here in zip(seeds, found, strict=True):
        stream = torch.Generator().manual_seed(seed)
        there = torch.cat([torch.randn(count, generator=stream) for _ in range(2)])
        assert np.abs(np.array(here) - there.numpy()).max() < 2e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solvers_take_the_steps_of_limner(browser: Page, solver: str) -> None:
    # Of a denoiser that says something else at each time and place, so that every weight counts.
    sampling = {"shift": 1.7, "timestep_power": 1.3, "zero_init_steps": 1}
    found = browser.ask(
        f"(() => {{ {with_source('noise.js', 'solvers.js')}"
        "const last = 500, stream = new Noise(3), noise = () => stream.normal(48);"
        "const denoise = (x, time) => x.map(value => Math.tanh(3 * value + time / 150));"
        f"const times = timesAt(7, {json.dumps(sampling)}, last), told = [];"
        f"const x = SOLVERS[{json.dumps(solver)}]"
        "(denoise, noise(), times, last, i => told.push(i), noise);"
        "return [times, [...x], told]; })()"
    )
    schedule, stream = FlowMatchingSchedule(500), torch.Generator().manual_seed(3)
    times = inference_timesteps(SamplingConfig(num_inference_steps=7, **sampling), schedule)
    told: list[int] = []
    there = SOLVERS[solver](
        lambda x, time: torch.tanh(3 * x + time / 150),
        torch.randn(48, generator=stream),
        times,
        schedule,
        lambda _: torch.randn(48, generator=stream),
        lambda i, _: told.append(i),
    )
    assert np.allclose(found[0], times.numpy(), rtol=1e-12)
    assert np.abs(np.array(found[1]) - there.numpy()).max() < 2e-5
    assert found[2] == told == list(range(6))


def test_the_matrix_product_is_the_bytes_that_wat2wasm_makes() -> None:
    # Of `wat2wasm matmul.wat` (wabt 1.0.39): after a change there, compare again.
    wanted = "036837dfe02c615bb2a5aced1f8740406d798718c36a07169efd309ee3ad8a8d"
    assert hashlib.sha256(assemble(with_source("matmul.wat"))).hexdigest() == wanted
    with pytest.raises(ValueError, match=r"f32x4\.sqrt is not known"):
        assemble('(module (import "a" "b" (memory 1)) (func (export "c") (f32x4.sqrt)))')


@pytest.mark.parametrize(("rows", "inner", "columns"), [(4, 1, 8), (12, 7, 16), (8, 33, 40)])
def test_the_matrix_product_multiplies(browser: Page, rows: int, inner: int, columns: int) -> None:
    a, b = (np.random.default_rng(0).normal(size=s) for s in ((rows, inner), (inner, columns)))
    code = base64.b64encode(assemble(with_source("matmul.wat"))).decode()
    found = browser.ask(f"""
    (async () => {{
      const memory = new WebAssembly.Memory({{initial: 1}}), f = new Float32Array(memory.buffer);
      const wasm = Uint8Array.from(atob("{code}"), c => c.charCodeAt(0));
      const {{instance}} = await WebAssembly.instantiate(wasm, {{page: {{memory}}}});
      f.set({a.ravel().tolist()}, 16);
      f.set({b.ravel().tolist()}, 2000);
      instance.exports.matmul(64, 8000, 16000, {rows}, {inner}, {columns});
      return [...f.subarray(4000, 4000 + {rows * columns})];
    }})()
    """)
    assert np.allclose(np.array(found).reshape(rows, columns), a @ b, atol=1e-5)


def test_the_same_model_makes_the_same_page(exported: Exported, tmp_path: Path) -> None:
    checkpoint, page = exported("velocity", "int8")
    again = export_web_page(checkpoint, tmp_path)
    assert again == tmp_path / "limner.html"
    assert again.read_bytes() == page.read_bytes()


# The page

OUTSIDE = """
[...document.querySelectorAll("header *, main *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(element => element.outerHTML.slice(0, 120))
"""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_one_draws_on_the_page(browser: Page, exported: Exported, width: int, dark: bool) -> None:
    _, page = exported("velocity", "int8")
    opened(browser, page, width, dark)
    assert browser.ask("document.title") == "velocity"
    assert browser.ask("[...$('examples').children].map(b => b.textContent)") == ["a red circle"]
    browser.ask("$('examples').firstChild.click()")
    assert browser.ask("$('prompt').value") == "a red circle"
    browser.ask("$('prompt').value = 'a red circle\\n  two squares  \\n'; $('count').value = 2")
    browser.ask("$('fresh').checked = false; $('seed').value = 7")
    # By the keyboard alone.
    key = "new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, cancelable: true})"
    browser.ask(f"$('prompt').dispatchEvent({key})")
    browser.ask(
        "new Promise(go => { const look = () => stopping ? setTimeout(look, 20) : go(); look(); })"
    )
    assert browser.ask("$('status').textContent").startswith("4 images in")
    alts = browser.ask("[...document.querySelectorAll('figure img')].map(i => i.alt)")
    assert alts == ["a red circle", "a red circle", "two squares", "two squares"]
    browser.ask("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.ask(OUTSIDE) == []
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 384) == dark
    assert browser.complaints() == []
    # The same again is the same.
    before = browser.ask("document.querySelectorAll('figure img')[1].src")
    browser.ask("document.querySelectorAll('figure')[1].querySelector('button').click()")
    browser.ask("draw()")
    assert browser.ask("document.querySelector('figure img').src") == before


def test_it_says_what_it_is_in_both_languages(browser: Page, exported: Exported) -> None:
    _, page = exported("student", "int8")
    opened(browser, page, 390)
    browser.ask("$('about').open = true")
    facts = browser.ask("$('facts').textContent")
    assert facts.startswith("step 3 · 0.")
    assert "int8 · 16 × 16 px" in facts
    credits = browser.ask("$('credits').innerText")
    assert "shapes (licence: apache-2.0)" in credits
    assert "rendered by Limner (Apache-2.0)" in credits
    english = browser.ask("document.body.innerText")
    browser.ask("$('language').click()")
    chinese = browser.ask("document.body.innerText")
    browser.open(page, 390, False)
    browser.ask("ready")
    assert browser.ask("document.documentElement.lang") == "zh-CN"
    browser.ask("$('about').open = true")
    assert browser.ask("document.body.innerText") == chinese
    assert ("Generate" in english, "生成" in chinese, "Generate" in chinese) == (True, True, False)
    assert "不含第三方作品" in chinese
    known = browser.ask("[Object.keys(WORDS.en), Object.keys(WORDS.zh)].map(k => k.join())")
    assert known[0] == known[1]
    assert browser.ask(OUTSIDE) == []
    browser.ask("$('language').click()")


def test_of_private_data_it_names_nothing_and_claims_no_licence(
    browser: Page, tmp_path: Path
) -> None:
    folder = made_up_checkpoint(tmp_path / "run" / "checkpoint-3", "data.dataset_name=null")
    file = export(folder, tmp_path / "secret" / "given.safetensors")
    page = export_web_page(file, tmp_path / "page.html")
    opened(browser, page)
    assert browser.ask("$('examples').children.length") == 0, "they may be captions"
    browser.ask("$('about').open = true")
    credits = browser.ask("$('credits').innerText")
    assert "trained from scratch on a private data set." in credits
    assert "No licence is stated" in credits
    assert "secret" not in page.read_text("utf-8")
    assert apart(drawn(browser, PROMPTS[:1], 1), drawn(browser, PROMPTS[:1], 1))[0] == 0


def test_it_says_what_goes_wrong_and_draws_again(browser: Page, exported: Exported) -> None:
    _, page = exported("velocity")
    opened(browser, page)
    browser.ask("$('steps').value = 0; draw()")
    assert browser.ask("[$('more').open, stopping, document.querySelector('figure')]") == [
        *(True, None, None),
    ]
    browser.ask("fillIn(); $('count').value = 3; $('solver').append(new Option('magic'))")
    browser.ask("$('solver').value = 'magic'; draw()")
    assert "solve" in browser.ask("$('error').textContent"), "a worker's error is shown"
    assert browser.ask("document.querySelectorAll('figure').length") == 0
    browser.ask("fillIn()")
    assert len(drawn(browser, ["red circle " * 30], 0)) == 1
    caption = browser.ask("document.querySelector('figcaption').innerText")
    assert "of which the model read 24" in caption


def test_a_drawing_is_stopped(browser: Page, exported: Exported) -> None:
    _, page = exported("velocity")
    opened(browser, page)
    browser.ask("$('steps').value = 1000; $('count').value = 8; self.ended = draw(); 0")
    browser.ask("""
    new Promise(go => {
      const look = () => [...document.querySelectorAll("progress")].some(p => p.value) ? go()
        : setTimeout(look, 20);
      look();
    })
    """)
    browser.ask("$('stop').click(); ended")
    assert browser.ask("[$('status').textContent, $('error').hidden]") == ["Stopped.", True]
    assert browser.ask("document.querySelectorAll('figure').length") == 0
    assert len(drawn(browser, PROMPTS[:2], 0, steps=2)) == 2


def test_its_policy_lets_nothing_in_or_out(browser: Page, exported: Exported) -> None:
    _, page = exported("velocity", "int8")
    opened(browser, page)
    tried = browser.ask("""
    (async () => {
      const said = [];
      addEventListener("securitypolicyviolation", event => said.push(event.effectiveDirective));
      const wait = () => new Promise(go => setTimeout(go, 300));
      await fetch("http://127.0.0.1:9/").catch(() => 0);
      new Image().src = "http://127.0.0.1:9/a.png";
      const script = document.createElement("script");
      script.textContent = "self.broken = true";
      document.body.append(script);
      await wait();
      return [said.sort(), self.broken === undefined];
    })()
    """)
    assert tried == [["connect-src", "img-src", "script-src-elem"], True]
    text = page.read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []


def test_an_old_browser_is_told_so(browser: Page, exported: Exported) -> None:
    _, page = exported("velocity", "int8")
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument", source="delete self.DecompressionStream"
    )["identifier"]
    browser.open(page, 1280, False)
    browser.ask("ready")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    assert browser.ask("language") == "en"
    assert "too old" in browser.ask("$('error').textContent")
    assert browser.ask("$('draw').disabled") is True


# The command


def test_the_command_writes_it(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = exported("velocity")
    page = tmp_path / "page.html"
    words = ["export", str(checkpoint), "--format", "web", "--output", str(page)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "page.html" in said
    assert "Open it in a browser" in said
    assert main([*words, "--dtype", "float16"]) == 0, "an earlier page is replaced"
    before = page.read_bytes()
    assert main([*words, "--dtype", "bfloat16"]) == 2
    assert f"use one of {', '.join(PRECISIONS)}" in capsys.readouterr().err
    assert page.read_bytes() == before
    page.write_text("my own page", "utf-8")
    assert main(words) == 2
    assert "is not an earlier export" in capsys.readouterr().err
    assert page.read_text("utf-8") == "my own page"
    assert main([*words[:-3], "safetensors", "--output", str(tmp_path), "--dtype", "int8"]) == 2
    assert "unknown dtype 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.architecture=dit", "model.architecture is dit"),
        ("scheduler.objective=diffusion", "scheduler.objective is diffusion"),
        ("sampling.guidance_type=apg", "guidance_type is apg"),
        ("sampling.guidance_rescale=0.5", "guidance_rescale is 0.5"),
    ],
)
def test_what_it_cannot_draw_is_refused_with_a_way(
    tmp_path: Path, override: str, reason: str
) -> None:
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", override)
    with pytest.raises(LimnerError, match=reason) as told:
        export_web_page(checkpoint, tmp_path / "page.html")
    assert "Use --format diffusers" in str(told.value)
    assert not (tmp_path / "page.html").exists()


def test_latents_and_pretrained_text_are_refused_together(tmp_path: Path) -> None:
    checkpoint = made_up_in_latents(tmp_path / "checkpoint", tmp_path / "parts")
    with pytest.raises(LimnerError) as told:
        export_web_page(checkpoint, tmp_path / "page.html")
    assert "draws in latents" in str(told.value)
    assert "pretrained text encoder" in str(told.value)
