"""`limner publish` against a Hub on loopback that records what arrives."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from evaluation_of import evaluation_of
from jinja2 import UndefinedError
from made_up import made_up_checkpoint, made_up_in_latents
from PIL import Image
from recording_hub import TOKEN, Recorded, recording_hub

from limner import ImageGenerator, Trainer
from limner.apps.publishing.card import Facts, Sample, changed_settings, model_card
from limner.apps.publishing.markdown import plain, templates
from limner.apps.publishing.upload import Said, publish
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.lineage import LearnedFrom, Lineage
from limner.checkpoint.single_file import sha256_of
from limner.cli import main
from limner.config import load_config
from limner.errors import LimnerError
from limner.evaluation.evaluate import evaluate

PIPELINE = {"README.md", "limner.safetensors", "manifest.json", "model_index.json", "pipeline.py"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


# The real command, as somebody runs it


def test_a_run_is_published_whole_and_the_token_stays_unseen(trained: Path, tmp_path: Path) -> None:
    with recording_hub() as hub:
        environment = dict(os.environ)
        environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONUTF8": "1"}
        kept = tmp_path / "kept"
        words = ["publish", str(trained / "outputs"), "--repo", "shapes", "--private"]
        words += ["--output", str(kept), "--log-level", "debug"]
        done = subprocess.run(
            [sys.executable, "-m", "limner", *words],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert hub.created == [
            {"name": "shapes", "organization": "someone", "visibility": "private"}
        ]
        assert hub.files.keys() == {"someone/shapes"}
        arrived = hub.files["someone/shapes"]
        assert arrived == files_of(kept)
        assert arrived.keys() > PIPELINE
        assert done.stdout.splitlines()[-1].startswith(f"{hub.address}/someone/shapes/commit/")
        assert hub.tokens == {TOKEN}
        for text in (done.stdout, done.stderr, *map(str, arrived.values())):
            assert TOKEN not in text
        assert not [
            p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()
        ]
        assert str(tmp_path) not in str(arrived["README.md"])

        # And whoever finds it draws from it by the two programs that the card shows.
        card = arrived["README.md"].decode()
        python = card.partition("```python\n")[2].partition("```")[0]
        done = subprocess.run(
            [sys.executable, "-c", python],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        downloaded = {r.split()[1].split("/", 5)[-1] for r in hub.requests if "/resolve/" in r}
        assert "limner.safetensors" not in downloaded, (
            "diffusers needs no second copy of the weights"
        )
        hub.requests.clear()
        (line,) = card.partition("```bash\n")[2].partition("\n```")[0].splitlines()
        program, *words = shlex.split(line)
        assert program == "limner"
        # Once it is here, it is drawn from without a network, too.
        for offline in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-m", "limner", *words],
                env=environment | {"HF_HUB_OFFLINE": offline},
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        downloaded = {r.split()[1].split("/", 5)[-1] for r in hub.requests if "/resolve/" in r}
        assert downloaded == {"limner.safetensors"}, "nothing else is needed, and no code"
    here, there = (np.array(Image.open(tmp_path / n)) for n in ("image.png", "output.png"))
    assert np.abs(here.astype(int) - there).max() <= 1
    prompt = words[2]
    own = ImageGenerator(trained / "outputs", device="cpu").generate(prompt, seed=42)
    assert np.array_equal(own, there)


def test_the_card_is_made_from_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(trained / "outputs"), "--repo", "me/shapes", "--dry-run"]
    assert main(["publish", *words]) == 0
    listed, _, card = capsys.readouterr().out.partition("  bytes in total\n")
    assert {line.split()[1] for line in listed.splitlines() if len(line.split()) == 2} > PIPELINE
    assert front_matter(card.strip() + "\n") == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "diffusion-transformer", "limner", "modern"],
        "language": ["en"],
    }
    results = json.loads((trained / "outputs" / "results.json").read_text("utf-8"))
    samples = json.loads((trained / "outputs" / "samples.json").read_text("utf-8"))
    assert f"| parameters | {results['parameters']:,}, published in float32 |" in card
    assert "| steps | 6 |" in card
    assert "| images seen | 24 |" in card
    assert f"limner {results['versions']['limner']}" in card
    assert "| `model.hidden_size` | `64` |" in card
    assert "training.output_dir" not in card
    assert str(trained) not in card
    assert f"{samples[0]['prompt']} (trained, {samples[0]['seed']})" in card
    assert "Sampled with dpmsolver++, 2 steps, guidance 3, in float32." in card
    assert "training prompts: 0.0% of 23 fully correct" in card
    assert 'DiffusionPipeline.from_pretrained("me/shapes", trust_remote_code=True)' in card
    assert "limner generate me/shapes " in card


def test_a_dry_run_sends_nothing(
    hub: Recorded, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner")
    assert publish(checkpoint, "tiny", dry_run=True) is None
    assert hub.requests == []
    assert "your-name/tiny" in caplog.messages[-1]


# What the card says, and what it does not


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "repo": "me/model", "config": load_config({"data": {"dataset_path": "/home/me/cats"}}),
        "parameters": 1000, "step": 5, "images": 20, "seconds": 61.0, "dtype": "float32",
        "samples": [], "results": {}, "evaluation": {},
        "page": None, "license": None, "data_name": None, "data_license": None,
    }  # fmt: skip
    return Facts(**values | changes)


def test_own_data_is_an_honest_blank_unless_said() -> None:
    described = {
        "dataset": {"description": "3 pictures with 3 captions from /home/me/cats (pairs)"}
    }
    card = model_card(facts(results=described))
    assert "license" not in front_matter(card)
    assert (
        "The publisher has not stated the source or the licence of the images and captions" in card
    )
    assert "The publisher has not chosen a licence for the model." in card
    assert "/home/me" not in card
    said = {"license": "mit", "data_name": "My cats", "data_license": "CC0-1.0"}
    card = model_card(facts(results=described, **said))
    assert front_matter(card)["license"] == "mit"
    assert "3 pictures with 3 captions from My cats" in card
    assert "My cats, licence: CC0-1.0." in card
    assert "has not stated" not in card
    assert "These weights were not evaluated." in card
    assert "There are no sample images" in card


def test_the_built_in_emoji_are_attributed() -> None:
    config = load_config({"data": {"dataset_name": "emoji", "languages": ["de", "fr"]}})
    card = model_card(facts(config=config))
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert front_matter(card)["language"] == ["de", "fr"]
    for words in ("Twemoji", "Twitter, Inc and other contributors", "CC-BY 4.0", "Changes made"):
        assert words in card


def test_prompts_cannot_break_the_card() -> None:
    nasty = 'a | b` <img src=x onerror=y> [c](d) **e** "f" $(g)\n# h 猫'
    how = {"scheduler_type": "ddim", "num_inference_steps": 4, "guidance_scale": 1.0}
    card = model_card(facts(samples=[Sample("samples/0.png", nasty, 7, "free", how)]))
    rows = [line for line in card.splitlines() if "samples/0.png" in line or "(free, 7)" in line]
    assert [row.count("|") for row in rows] == [2, 2]
    assert "onerror" in card
    assert "<img src=x" not in card
    assert 'pipe("a red apple"' in card, (
        "what shells or Python would take apart is not shown as code"
    )
    assert plain("é猫 a-b, c.") == "é猫 a-b, c."


def test_what_others_wrote_cannot_break_the_card() -> None:
    nasty = "<script>x<b> {{ 7 * 7 }} [c](d)\n---\nlicense: other\n---\n# h"
    base = Lineage(model="a/b", license=nasty, data=(LearnedFrom(name=nasty, license=nasty),))
    results = {"versions": {"a_b": nasty}, "device": nasty}
    card = model_card(
        facts(
            lineage=Lineage(data=(LearnedFrom(name=nasty),), base=base),
            results=results,
            evaluation=evaluation_of("cd" * 32) | {"events": [nasty], "device": nasty},
            license=nasty,
            data_name=nasty,
        )
    )
    head, body = card.split("\n---\n")
    metadata = yaml.safe_load(head.removeprefix("---\n"))
    assert metadata["license"] == nasty
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == nasty
    assert "<script>" not in body
    assert "[c](d)" not in body
    assert "\n# h" not in body
    assert body.count(plain(nasty)) == 8
    assert "49" not in body.replace(plain(nasty), "")


def test_the_card_wants_all_values_of_its_template() -> None:
    with pytest.raises(UndefinedError, match="'metadata' is undefined"):
        templates().get_template("model_card.md").render({})


def test_an_evaluation_is_shown_with_intervals_floors_and_protocol() -> None:
    evaluation = evaluation_of("cd" * 32)
    card = model_card(facts(evaluation=evaluation, page="evaluation/evaluation.html"))
    lines = card.splitlines()
    name = "kernel distance (EfficientNet-Lite0)"
    for line in (
        f"| {name} (lower is better) | 0.01234 | 0.011 to 0.0135 | 0.002 (39 / 39) | 312 / 39 |",
        "| recall of Kynkäänniemi (higher is better) | – |  | – | 312 / 39 |",
        f"- {name}: few pictures",
        f"- real-vs-real baseline of {name}: by chance",
        "- held-out prompts (39): recall@1 95.0% (95% CI 83.0% to 99.0%), recall@5 100.0% (95% CI "
        "91.0% to 100.0%), among 335 images of the data set",
        "- training prompts (23): 50.0% (95% CI 30.0% to 70.0%) fully correct (colour 75%)",
        "- memorisation: no sign of copies (root mean square, 16 x 16)",
        "- Inception is not at hand, so no FID &#124; none",
        "| 0.1 | 0.51 | 0.5 |",
        "| 0.9 | 0.25 | – |",
        "| prompts | 39 held-out captions, 8 seeds each |",
        "| guidance&#95;interval | 0, 1 |",
        f"| confidence interval of {name} | bootstrap over 39 prompts |",
        f"| feature extractor of {name}, SHA-256 | {'ab' * 32} |",
        f"| weights, SHA-256 | {'cd' * 32} |",
        "| software | limner 0.1.0, torch 2.13.0 |",
        "[The full evaluation with images](evaluation/evaluation.html); download it to view it.",
    ):
        assert line in lines, line
    assert "evaluation.html" not in model_card(facts(evaluation=evaluation))


def test_the_hub_reads_the_metrics_by_honest_names() -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(
        model_card(facts(evaluation=evaluation_of("ab"))), ignore_metadata_errors=False
    )
    found = {(r.metric_type, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("kernel-distance-efficientnet-lite0",
         "kernel distance (EfficientNet-Lite0), 312 generated, 39 real"): 0.01234,
        ("recall-at-1-held-out",
         "recall@1, held-out prompts, among 335 images of the data set"): 0.95,
    }  # fmt: skip
    assert {(r.task_type, r.dataset_type, r.dataset_name) for r in card.data.eval_results} == {
        ("text-to-image", "emoji", "emoji")
    }
    assert card.data.model_name == "model"
    assert "model-index" not in front_matter(model_card(facts()))


@pytest.mark.parametrize("own", [False, True])
def test_an_evaluation_of_these_weights_goes_along(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, own: bool
) -> None:
    run = tmp_path / "somebody" / "run"
    shutil.copytree(checkpoint, run / "checkpoint-3")
    if own:
        path = run / "checkpoint-3" / "config.yaml"
        text = path.read_text("utf-8").replace("dataset_name: shapes", "dataset_name: null")
        path.write_text(text, "utf-8")
    folder = run / "evaluation"
    folder.mkdir()
    evaluation = evaluation_of(
        sha256_of(Checkpoint.open(run).tensors()), str(tmp_path / "somebody" / "reference.npz")
    )
    (folder / "evaluation.json").write_text(json.dumps(evaluation), "utf-8")
    (folder / "evaluation.html").write_text(f"<p>{run}/evaluation, shown</p>", "utf-8")

    def published(*words: str) -> dict[str, bytes]:
        kept = tmp_path / "kept"
        words = ("publish", str(run), "--repo", "me/x", "--dry-run", "--output", str(kept), *words)
        assert main(words) == 0
        return files_of(kept)

    found = published()
    assert b"| 0.01234 | 0.011 to 0.0135 | 0.002 (39 / 39) |" in found["README.md"]
    if own:
        assert "evaluation/evaluation.html" not in found
        assert b"evaluation.html" not in found["README.md"]
        assert "use --page to upload it" in caplog.text
        found = published("--page")
    page = found["evaluation/evaluation.html"].decode()
    assert "kernel distance (EfficientNet-Lite0)" in page
    assert "limner evaluate me/x" in page
    assert "outputs/demo" not in page
    assert b"(evaluation/evaluation.html)" in found["README.md"]
    written = json.loads(found["evaluation/evaluation.json"])
    assert written["metrics"] == evaluation["metrics"]
    assert written["protocol"]["reference"] == "reference.npz"
    assert not [name for name, content in found.items() if str(tmp_path).encode() in content]

    evaluation["checkpoint"]["weights_sha256"] = "0" * 64
    (folder / "evaluation.json").write_text(json.dumps(evaluation), "utf-8")
    found = published()
    assert b"These weights were not evaluated." in found["README.md"]
    assert not [name for name in found if name.startswith("evaluation/")]
    assert "belongs to other weights" in caplog.text


def test_what_evaluate_writes_is_in_the_card_of_its_own_weights(
    trained: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained / "outputs", tmp_path / "run")
    few = ["evaluation.num_images=4", "evaluation.efficientnet=false"]
    evaluate(run, few, device="cpu")

    def card_of(checkpoint: Path) -> str:
        output = tmp_path / f"card-of-{checkpoint.name}"
        publish(checkpoint, "me/model", dry_run=True, output=output)
        return (output / "README.md").read_text("utf-8")

    assert "weights, SHA-256" in card_of(run / "checkpoint-6")
    assert "weights, SHA-256" not in card_of(run / "checkpoint-3")


def test_the_recipe_is_what_differs_from_the_defaults() -> None:
    assert dict(changed_settings(load_config(None))) == {}
    changed = load_config(
        {
            "model": {"num_layers": 3},
            "training": {"num_workers": 7, "output_dir": "/secret"},
            "vae": {"pretrained_model_name": "/home/me/my-vae"},
            "text_encoder": {"pretrained_model_name": "google/t5-v1_1-base"},
        }
    )
    found = dict(changed_settings(changed))
    assert found["model.num_layers"] == "3"
    assert "vae.pretrained_model_name" not in found, "it lies in a folder of its own"
    assert found["text_encoder.pretrained_model_name"] == "google/t5-v1_1-base"
    assert "| `text_encoder.pretrained_model_name` | `google/t5-v1_1-base` |" in model_card(
        facts(config=changed)
    ), "in code nothing is escaped"
    assert not {"training.num_workers", "training.output_dir"} & found.keys()


def test_figures_of_another_checkpoint_are_left_out(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = trained / "outputs" / "checkpoint-3"
    caplog.set_level("INFO", "limner")
    publish(older, "me/older", dry_run=True, said=Said(prompts=("a circle",)))
    card = caplog.messages[-1]
    assert "| steps | 3 |" in card
    assert "These weights were not evaluated." in card
    assert "a circle (free, 0)" in card
    assert "(trained," not in card
    assert "do not belong to checkpoint-3" in caplog.text
    run = tmp_path / "run"
    shutil.copytree(trained / "outputs", run)
    stale = json.loads((run / "results.json").read_text("utf-8")) | {"steps": 2}
    (run / "results.json").write_text(json.dumps(stale), "utf-8")
    publish(run, "me/stale", dry_run=True)
    assert "These weights were not evaluated." in caplog.messages[-1]


# Parts that come along


def test_pretrained_parts_come_along_and_are_found_beside_the_file(
    hub: Recorded, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    checkpoint = made_up_in_latents(tmp_path / "checkpoint", parts)
    there = np.array(ImageGenerator(checkpoint, device="cpu").generate("a circle", seed=1))
    address = publish(checkpoint, "me/latents", output=tmp_path / "kept")
    assert address == f"{hub.address}/me/latents/commit/{'0' * 40}"
    shutil.rmtree(parts)
    moved = (tmp_path / "kept").rename(tmp_path / "downloaded")
    assert files_of(moved) == hub.files["me/latents"]
    here = ImageGenerator(moved / "limner.safetensors", device="cpu").generate("a circle", seed=1)
    assert np.abs(np.array(here).astype(int) - there).max() <= 1
    (moved / "vae" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(LimnerError, match="describes a None"):
        ImageGenerator(moved / "limner.safetensors", device="cpu")


# What goes wrong


@pytest.mark.parametrize(
    ("status", "said"), [(401, "you are not logged in"), (403, "hf auth login"), (500, "500")]
)
def test_a_refusal_is_told_without_the_token(
    hub: Recorded,
    checkpoint: Path,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from huggingface_hub import HfApi

    hub.refuse = status
    with pytest.raises(LimnerError, match=said) as error:
        publish(checkpoint, "me/tiny")
    assert hub.address in str(error.value)
    assert error.value.__suppress_context__

    def leak(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"request with Bearer {TOKEN} failed")

    monkeypatch.setattr(HfApi, "create_repo", leak)
    words = ["publish", str(checkpoint), "--repo", "me/tiny", "--log-level", "debug"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "Bearer *** failed" in told.err
    assert TOKEN not in told.out + told.err + caplog.text


def test_a_wrong_name_is_told_before_anything_is_made(hub: Recorded, tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match=r"--repo a b/c"):
        publish(tmp_path / "nothing", "a b/c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(LimnerError, match="contains other files"):
        publish(tmp_path / "nothing", "me/c", output=tmp_path / "mine")
    assert hub.requests == []


# As the FAQ has it


def test_a_saved_checkpoint_is_uploaded_as_the_faq_says(
    hub: Recorded, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    monkeypatch.chdir(tmp_path)
    trainer = Trainer(tiny_config("training.max_steps=1"))
    trainer.train()
    trainer.save_checkpoint("./outputs/final")
    api = HfApi()
    api.create_repo("your-username/dit-model")
    api.upload_folder(
        folder_path="./outputs/final",
        repo_id="your-username/dit-model",
    )
    arrived = hub.files["your-username/dit-model"]
    assert arrived == files_of(tmp_path / "outputs" / "final")
    assert {"model.pt", "ema.safetensors", "config.yaml", "tokenizer.json"} < arrived.keys()
    # What arrived is a checkpoint again.
    for name, content in arrived.items():
        (tmp_path / "back").mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert Checkpoint.open(tmp_path / "back").state.step == 1
    ImageGenerator(tmp_path / "back", device="cpu").generate("a circle")
