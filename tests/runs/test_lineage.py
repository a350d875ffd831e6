"""What a model began from is known as long as the model is there, and said where it is shown."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_up import made_up_checkpoint
from PIL import Image
from recording_hub import Recorded
from runs import trained as run_of

from limner.apps.publishing.card import license_that_fits
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.lineage import LearnedFrom, Lineage, named, read_lineage
from limner.checkpoint.single_file import WeightsFile
from limner.cli import main
from limner.config import Config
from limner.errors import LimnerError
from limner.evaluation.end_of_run import evaluate_run
from limner.reports.run_report import write_report
from limner.training.trainer import Trainer

SHAPES = LearnedFrom("shapes", "apache-2.0")
EMOJI = LearnedFrom("emoji", "cc-by-4.0")
PRIVATE = LearnedFrom()
CLIENT = "Northwind GmbH"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Somebody's own pictures, as an override."""
    folder = tmp_path / CLIENT / "pictures"
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (16, 16), (number * 30, 0, 99)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"colour number {number}", "utf-8")
    return f"data.dataset_path='{folder}'"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run of another, on shapes, in a client's folder."""
    made_up_checkpoint(tmp_path / CLIENT / "base" / "checkpoint-3")
    return tmp_path / CLIENT / "base"


def fine_tuned(build: Callable[..., Config], own: str, *words: str) -> Trainer:
    names = "data.dataset_name=null", "data.num_samples=null", "training.max_steps=1"
    return run_of(build(*names, own, *words))


def published(model: Path, kept: Path, *words: str) -> str:
    """The card."""
    kept = kept / "published"
    assert main(["publish", str(model), "--repo", "me/new", "--dry-run", "--output", str(kept),
                 *words]) == 0  # fmt: skip
    return (kept / "README.md").read_text("utf-8")


def front(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_run_from_nothing_began_from_nothing(tiny_config: Callable[..., Config]) -> None:
    folder = run_of(tiny_config("training.max_steps=1")).folder
    assert read_lineage(folder) == Lineage(data=(SHAPES,))
    assert read_lineage(folder / "checkpoint-1") == Lineage(data=(SHAPES,))
    assert "trained from scratch" in write_report(folder).read_text("utf-8")


def test_from_a_published_model_its_id_licence_and_data_are_named(
    hub: Recorded, tiny_config: Callable[..., Config], own: str, base: Path, tmp_path: Path
) -> None:
    words = ["--repo", "me/shapes", "--license", "mit"]
    assert main(["publish", str(base), *words]) == 0
    shutil.rmtree(base)
    trainer = fine_tuned(tiny_config, own, "training.init_from=me/shapes@main")
    known = Lineage(model="me/shapes", license="mit", data=(SHAPES,))
    wanted = Lineage(data=(PRIVATE,), base=known)
    assert read_lineage(trainer.folder) == wanted
    assert Checkpoint.open(trainer.folder).lineage == wanted
    evaluate_run(trainer.folder, trainer.config, trainer.data, most=2)

    report = write_report(trainer.folder).read_text("utf-8")
    assert "fine-tuned from me/shapes" in report
    assert (
        "It began from me/shapes (licence: mit), which learned from shapes (licence: apache-2.0)."
        in report
    )
    assert CLIENT not in report
    assert "from scratch" not in report

    card = published(trainer.folder, tmp_path)
    assert front(card)["base_model"] == "me/shapes"
    assert front(card)["base_model_relation"] == "finetune"
    assert "license" not in front(card), "nobody has chosen one, and those of before differ"
    link = "[me/shapes](https://huggingface.co/me/shapes)"
    assert f"fine-tuned with Limner from {link} on a private data set." in card
    assert (
        f"It began from {link} (licence: mit), which learned from Limner's built-in shapes "
        "(licence: apache-2.0)." in card
    )
    assert "contain no third-party artwork" in card, "the attribution of the first data set"
    assert "from scratch" not in card
    assert "training.init_from`" not in card

    card = published(trainer.folder, tmp_path, "--data_name", "Colours", "--data_license", "CC0")
    assert "on Colours." in card
    assert "Colours, licence: CC0." in card

    # An export takes it along, and what begins from that knows both.
    exported = tmp_path / "colours.safetensors"
    assert main(["export", str(trainer.folder), "--output", str(exported)]) == 0
    assert WeightsFile.open(exported).lineage == wanted
    again = fine_tuned(
        tiny_config, own, f"training.init_from='{exported}'",
        f"training.output_dir='{tmp_path / 'again'}'", "data.dataset_name=shapes",
        "data.num_samples=8",
    )  # fmt: skip
    there = read_lineage(again.folder)
    assert there == Lineage(data=(SHAPES,), base=replace(wanted, name="colours.safetensors"))
    card = published(again.folder, tmp_path)
    assert front(card)["base_model"] == "me/shapes", "the nearest that is public"
    assert "from a model that is not public on " in card
    assert "which learned from a private data set." in card
    assert f"That one began from {link} (licence: mit)" in card
    written = (tmp_path / "published" / "lineage.json").read_text("utf-8")
    assert "colours.safetensors" not in written
    assert Lineage.from_json(written, "it").model == "me/new"
    assert "fine-tuned from colours.safetensors" in write_report(again.folder).read_text("utf-8")


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_keeps_what_the_first_began_from(
    tiny_config: Callable[..., Config], own: str, base: Path, tmp_path: Path, lora: bool
) -> None:
    words = [f"training.init_from='{base}'", *(["lora.rank=2"] if lora else [])]
    first = fine_tuned(tiny_config, own, *words)
    wanted = Lineage(
        method="lora" if lora else "full",
        data=(PRIVATE,),
        base=Lineage(name="base", data=(SHAPES,)),
    )
    assert read_lineage(first.folder) == wanted
    other = tiny_config(
        *(words if lora else ()), "training.max_steps=2", "data.dataset_name=shapes",
        "data.num_samples=8",
        f"training.output_dir='{tmp_path / 'second'}'",
    )  # fmt: skip
    second = Trainer(other, resume=str(first.folder / "checkpoint-1"))
    second.train()
    assert read_lineage(second.folder) == replace(wanted, data=(PRIVATE, SHAPES))
    report = write_report(second.folder).read_text("utf-8")
    assert f"fine-tuned{' with LoRA of rank 2' if lora else ''} from base" in report

    card = published(second.folder, tmp_path, "--base_model", "me/base")
    how = ", with LoRA of rank 2, merged into the weights" if lora else ""
    sets = "a private data set and its built-in shapes"
    begun = "[me/base](https://huggingface.co/me/base)"
    assert f"fine-tuned with Limner from {begun} on {sets}{how}." in card
    assert front(card)["base_model"] == "me/base"
    assert "the source or the licence of the images and captions:" in card
    assert main(["publish", str(second.folder), "--repo", "me/new", "--dry-run",
                 "--base_model", str(base)]) == 2  # fmt: skip
    unsaid = published(second.folder, tmp_path)
    assert "base_model" not in front(unsaid)
    assert "from a model that is not public on " in unsaid
    for text in (card, unsaid, report):
        assert CLIENT not in text


def test_a_checkpoint_from_before_says_what_its_configuration_says(
    tiny_config: Callable[..., Config], own: str, base: Path, tmp_path: Path
) -> None:
    trainer = fine_tuned(tiny_config, own, f"training.init_from='{base}'")
    old = trainer.folder / "checkpoint-1"
    for place in (trainer.folder, old):
        (place / "lineage.json").unlink()
    manifest = json.loads((old / "manifest.json").read_text("utf-8"))
    del manifest["files"]["lineage.json"]
    (old / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    before = Lineage(name="base", complete=False)
    assert Checkpoint.open(old).lineage == Lineage(data=(PRIVATE,), base=before)
    report = write_report(trainer.folder).read_text("utf-8")
    assert "fine-tuned from base" in report
    assert CLIENT not in report
    card = published(trainer.folder, tmp_path)
    assert "what that one learned from was not recorded." in card
    assert "license" not in front(card)
    assert CLIENT not in card


def test_an_export_from_before_says_that_it_does_not_know(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.checkpoint import single_file

    exported = tmp_path / "old.safetensors"
    save_file = single_file.save_file

    def without(weights: object, path: Path, metadata: dict[str, str]) -> None:
        later = ("lineage", "header_sha256")
        save_file(weights, path, {k: v for k, v in metadata.items() if k not in later})  # type: ignore[arg-type]

    monkeypatch.setattr(single_file, "save_file", without)
    assert main(["export", str(base), "--output", str(exported)]) == 0
    assert WeightsFile.open(exported).lineage == Lineage(data=(SHAPES,), complete=False)


@pytest.mark.parametrize(
    ("lineage", "fits"),
    [
        (Lineage(data=(EMOJI,)), "cc-by-4.0"),
        (Lineage(data=(SHAPES,), base=Lineage(data=(SHAPES,))), "apache-2.0"),
        (Lineage(data=(SHAPES,), base=Lineage(data=(EMOJI,))), None),
        (Lineage(data=(SHAPES,), base=Lineage(license="mit", data=(SHAPES,))), None),
        (Lineage(data=(SHAPES,), base=Lineage(complete=False)), None),
        (Lineage(data=(SHAPES, PRIVATE)), None),
        (Lineage(data=(LearnedFrom("Chairs", "CC0"),)), None),
    ],
)
def test_a_licence_is_chosen_only_where_all_that_was_learned_from_has_it(
    lineage: Lineage, fits: str | None
) -> None:
    assert license_that_fits(lineage) == fits


def test_two_private_sets_are_two_and_one_that_grew_or_was_moved_is_one(
    tiny_config: Callable[..., Config], own: str, tmp_path: Path
) -> None:
    first = fine_tuned(tiny_config, own)
    assert first.run.lineage.data == (PRIVATE,)
    folder = tmp_path / CLIENT / "pictures"
    words = ["data.dataset_name=null", "data.num_samples=null"]

    def goes_on(data: Path, steps: int) -> tuple[LearnedFrom, ...]:
        config = tiny_config(*words, f"data.dataset_path={data}", f"training.max_steps={steps}")
        trainer = Trainer(config, resume="latest")
        trainer.train()
        return trainer.run.lineage.data

    Image.new("RGB", (16, 16), "red").save(folder / "new.png")
    (folder / "new.txt").write_text("a new one", "utf-8")
    assert goes_on(folder, 2) == (PRIVATE,)
    moved = folder.rename(tmp_path / "moved")
    assert goes_on(moved, 3) == (PRIVATE,)
    other = tmp_path / "other client"
    shutil.copytree(moved, other)
    (other / "new.txt").write_text("something else", "utf-8")
    assert goes_on(other, 4) == (PRIVATE, PRIVATE)
    assert goes_on(other, 5) == (PRIVATE, PRIVATE)

    card = published(first.folder, tmp_path)
    assert "on a private data set and another private data set." in card
    assert card.count("the source or the licence of the images and captions:") == 1
    card = published(first.folder, tmp_path, "--data_name", "Ours", "--data_license", "CC0")
    assert "on a private data set and Ours." in card
    assert "the source or the licence of the images and captions of a private" in card


def test_of_very_many_models_one_from_the_other_a_hundred_are_named() -> None:
    lineage = Lineage(name="first", data=(EMOJI,))
    for number in range(1, 151):
        lineage = Lineage(name=f"{number}", data=(SHAPES,), base=lineage)
    found = Lineage.from_json(lineage.to_json(), "it")
    before = list(found.models_before())
    assert [one.name for one in before] == [f"{150 - i}" for i in range(1, 101)]
    assert [one.complete for one in before] == [True] * 99 + [False]
    assert before[-1].data == (SHAPES, EMOJI), "to whom credit is due is not forgotten"
    assert Lineage.from_json(found.to_json(), "it") == found


def test_it_is_written_and_read_and_what_is_damaged_is_told(tmp_path: Path) -> None:
    whole = Lineage("me/a", "a", "mit", "lora", (EMOJI, PRIVATE), False, Lineage(data=(SHAPES,)))
    assert Lineage.from_json(whole.to_json(), "it") == whole
    assert whole.public() == replace(whole, name=None)
    assert read_lineage(tmp_path) is None
    for text in ("[]", "{", '{"data": 3}', '{"data": [], "model": 4}', '{"data": [], "base": 1}'):
        (tmp_path / "lineage.json").write_text(text, "utf-8")
        with pytest.raises(LimnerError, match=r"lineage\.json is damaged"):
            read_lineage(tmp_path)
    deep = '{"data": [], "base": ' * 200 + "null" + "}" * 200
    with pytest.raises(LimnerError, match="damaged"):
        Lineage.from_json(deep, "it")


def test_a_model_is_named_by_its_id_or_by_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(Lineage(), "me/shapes@v1").model == "me/shapes"
    assert named(Lineage(), f"/home/{CLIENT}/demo/checkpoint-6").name == "demo/checkpoint-6"
    assert named(Lineage(), f"{CLIENT}/demo.safetensors").name == "demo.safetensors"
