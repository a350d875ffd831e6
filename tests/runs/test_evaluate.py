"""`limner evaluate`: numbers that are what they claim, and say how they were made."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluated import (
    COUNT,
    Means,
    Standard,
    draws,
    made_up_run,
    metric,
    pictures_in,
    refused,
    results_of,
    truths,
)
from PIL import Image
from pretrained import tiny_clip, tiny_dinov2

from limner.apps.sweep.record import Record
from limner.checkpoint.folder import Checkpoint
from limner.cli import main
from limner.config import SamplingConfig
from limner.errors import LimnerError
from limner.evaluation import evaluate as evaluating
from limner.evaluation import heldout_loss, metrics, samples
from limner.evaluation.evaluate import evaluate
from limner.evaluation.networks import efficientnet
from limner.evaluation.swept import FILE
from limner.inference.generator import ImageGenerator
from limner.training.monitor.run_log import read_log


@pytest.fixture(autouse=True)
def _quick_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "EfficientNet", Means)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a checkpoint that knows of a folder of pictures, half of them held out."""
    return made_up_run(tmp_path, pictures_in(tmp_path / "data"))


# What is written


def test_one_command_writes_all_that_was_agreed(run: Path, capsys: Any) -> None:
    assert main(["evaluate", str(run), "--num_images", "20", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    folder = run / "evaluation"
    assert str(folder / "evaluation.html") in said
    text = (folder / "evaluation.json").read_text("utf-8")
    results = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert set(results) >= {
        *("format", "created", "command", "checkpoint", "dataset", "protocol", "versions"),
        *("device", "held_out_loss", "recall", "checker", "metrics", "memorisation", "pictures"),
        *("refused", "events"),
    }
    assert results["checkpoint"] | {"path": "", "weights_sha256": "", "parameters": 0} == {
        "path": "", "step": 3, "images": 12, "weights": "averaged", "parameters": 0,
        "weights_sha256": "",
    }  # fmt: skip
    split = results["dataset"]
    assert split["trained"] + split["held_out"] == COUNT
    assert all(not isinstance(v, dict | list) for v in results["protocol"].values())
    assert results["protocol"]["drawn.pictures"] == 20
    assert results["protocol"]["sampling.num_inference_steps"] == 2
    levels = ["0.1", "0.3", "0.5", "0.7", "0.9"]
    assert list(results["held_out_loss"]["held_out"]) == levels
    assert list(results["held_out_loss"]["trained"]) == levels
    for found in results["recall"].values():
        assert {"count", "at_1", "at_5", "range"} <= set(found)
        assert {"value", "interval", "interval_by", "std", "notes"} == set(found["at_1"])
    measured = {record["metric"] for record in results["metrics"]}
    assert measured == {"Frechet distance", "kernel distance", "precision", "recall"}
    for record in results["metrics"]:
        assert record["counts"] == [20, split["held_out"]]
        assert record["network"]["weights_sha256"] == "ab" * 32
        assert record["reference"]["count"] == split["held_out"]
        assert record["floor"]["values"]
        assert record["better"] == ("lower" if "distance" in record["metric"] else "higher")
    for case in results["memorisation"]["worst"]:
        for name in ("drawn", "trained"):
            assert Image.open(folder / case[name]).size == (16, 16)
        assert case["caption"].startswith("pattern number")
        assert case["own_ratio"] == pytest.approx(case["distance"] / case["own"])
    assert {line["split"] for line in results["pictures"]} == {"trained", "held out"}
    for line in results["pictures"]:
        assert Image.open(folder / line["file"]).size == (16, 16)
        truth = np.array(Image.open(folder / line["truth"]))
        assert np.array_equal(truth, truths(run)[line["prompt"]])
        assert line["rank"] >= 1
    for record in results["metrics"]:
        assert record["name"] in said
    assert "held-out loss" in said
    assert "captions: recall@1 " in said


def test_a_checkpoint_that_a_run_deletes_meanwhile_costs_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = run.glob("checkpoint-*")
    opened = Checkpoint.open(folder)

    def delete_first(*parts: Any) -> Any:
        shutil.rmtree(folder)
        return samples.draw(*parts)

    monkeypatch.setattr(evaluating, "draw", delete_first)
    few = ["evaluation.num_images=4", "evaluation.other_images=0", "evaluation.loss_images=4"]
    found = evaluate(run, few, device="cpu")
    assert not folder.exists()
    assert found.results["checkpoint"]["step"] == 3
    with pytest.raises(LimnerError, match=r"checkpoint-3 no longer exists\. A run deletes"):
        opened.tensors()


def test_the_same_command_gives_the_same_numbers(run: Path) -> None:
    first, second = results_of(run), results_of(run)  # the second time with a cache
    for results in (first, second):
        del results["created"]
    assert first == second
    other = results_of(run, "evaluation.seed=1")
    assert metric(other, "kernel distance")["value"] != metric(first, "kernel distance")["value"]


def test_recall_is_that_of_the_pictures_beside_it(run: Path) -> None:
    results = results_of(run)

    def seen(image: np.ndarray) -> np.ndarray:
        return image.astype(float).ravel()

    everything = {prompt: seen(image) for prompt, image in truths(run).items()}
    folder = run / "evaluation"
    for split in ("trained", "held out"):
        right = []
        for line in results["pictures"]:
            if line["split"] == split:
                drawn = seen(np.array(Image.open(folder / line["file"])))
                far = {p: np.square(drawn - real).sum() for p, real in everything.items()}
                place = sorted(far.values()).index(far[line["prompt"]]) + 1
                assert line["rank"] == place
                right.append(place <= 5)
        found = results["recall"][split.replace(" ", "_")]
        assert (found["count"], found["at_5"]["value"]) == (len(right), np.mean(right))


def test_the_loss_is_the_one_that_training_logged(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained / "outputs", tmp_path / "run")
    monkeypatch.setattr(heldout_loss, "AT_ONCE", 3)  # noise is by place, whatever the parts
    found = results_of(run, "evaluation.loss_images=4")["held_out_loss"]
    logged = [line for line in read_log(run / "log.jsonl") if line["kind"] == "heldout"][-1]
    for here, there in (("held_out", "loss_by_level"), ("trained", "train_loss_by_level")):
        assert list(found[here].values()) == pytest.approx(list(logged[there].values()), rel=1e-5)
    assert found["trained_count"] == 4
    gap = np.mean(list(found["held_out"].values())) - np.mean(list(found["trained"].values()))
    assert found["gap"] == pytest.approx(gap)


def test_shapes_are_read_back_instead_of_ranked(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "outputs", tmp_path / "run")
    results = results_of(run)
    assert results["recall"] is None
    found = results["checker"]["trained"]
    assert found["count"] == 10
    assert found["all_right"]["interval"][1] < 1
    assert {"colour", "shape"} <= set(found["by_part"])
    # One held-out picture is no set that distances could be to; the rest is measured all the same.
    assert results["metrics"] == []
    assert any("a reference requires at least two images" in event for event in results["events"])


# The numbers are what they claim


def test_a_perfect_painter_gets_full_marks_and_is_taken_for_a_copier_of_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = truths(run)
    draws(monkeypatch, lambda prompt, seed: known[prompt])
    held_out = results_of(run)["dataset"]["held_out"]
    results = results_of(run, f"evaluation.num_images={held_out}")
    assert metric(results, "Frechet distance")["value"] == pytest.approx(0, abs=1e-8)
    assert metric(results, "kernel distance")["value"] <= 0  # unbiased: of equal sets below it
    assert metric(results, "precision")["value"] == metric(results, "recall")["value"] == 1
    for split in ("trained", "held_out"):
        assert results["recall"][split]["at_1"]["value"] == 1
    assert results["memorisation"]["ratio"]["value"] == pytest.approx(1)


def test_real_pictures_in_place_of_drawings_score_the_floor(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split by hash, trained pictures are others of the same kind: they are the floor's."""
    splits = results_of(run)
    trained, held_out = splits["dataset"]["trained"], splits["dataset"]["held_out"]
    known = truths(run)
    of_trained = [known[line["prompt"]] for line in results_of(
        run, "evaluation.other_images=100")["pictures"] if line["split"] == "trained"]  # fmt: skip
    assert len(of_trained) == trained
    draws(monkeypatch, lambda prompt, seed: of_trained[seed % trained])
    results = results_of(run, f"evaluation.num_images={trained}", "evaluation.other_images=0")
    for record in results["metrics"]:
        assert record["floor"]["counts"] == [trained, held_out]
        assert record["value"] == pytest.approx(record["floor"]["value"], rel=1e-6), record["name"]
        assert "training images in place of the generated images" in record["floor"]["notes"][0]
    # And what copies trained pictures for new captions is told so.
    assert results["memorisation"]["ratio"]["value"] == pytest.approx(0, abs=1e-2)
    assert results["memorisation"]["worst"][0]["distance"] == pytest.approx(0, abs=1e-2)


def test_worse_pictures_have_worse_numbers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, found = truths(run), []
    for light in (1.0, 0.5, 0.0):

        def darkened(prompt: str, seed: int, light: float = light) -> np.ndarray:
            return (known[prompt] * light).astype(np.uint8)

        draws(monkeypatch, darkened)
        found.append(results_of(run))
    for name in ("Frechet distance", "kernel distance"):
        values = [metric(results, name)["value"] for results in found]
        assert values == sorted(values)
    values = [metric(results, "precision")["value"] for results in found]
    assert values[0] == 1 > values[2]
    values = [results["recall"]["held_out"]["at_1"]["value"] for results in found]
    assert values[0] == 1 > values[2]


def test_the_kernel_distance_is_that_of_the_packaged_networks_features(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the true network
    drawn: list[np.ndarray] = []
    known = truths(run)

    def remembered(prompt: str, seed: int) -> np.ndarray:
        drawn.append(known[prompt] // 2)
        return drawn[-1]

    draws(monkeypatch, remembered)
    results = results_of(run, "evaluation.num_images=8", "evaluation.other_images=0",
                         "evaluation.reference_images=6", "evaluation.floor_repeats=0")  # fmt: skip
    held_out = [line["prompt"] for line in results_of(
        run, "evaluation.num_images=6", "evaluation.other_images=0",
        "evaluation.efficientnet=false")["pictures"]]  # fmt: skip
    network = efficientnet.open_network()
    a, b = (
        efficientnet.features(network, torch.from_numpy(np.stack(some))).double().numpy()
        for some in (drawn[:8], [known[prompt] for prompt in held_out])
    )

    def k(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(k(x, x).sum() - np.trace(k(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    expected = sum(within) - 2 * k(a, b).mean()
    found = metric(results, "kernel distance")
    assert found["name"] == "kernel distance (EfficientNet-Lite0)"
    assert found["value"] == pytest.approx(expected, rel=1e-5)
    assert found["network"]["weights_sha256"] == efficientnet.SHA256
    assert found["floor"] is None


def test_networks_that_are_named_are_measured_with(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "Inception", Standard)
    results = results_of(
        run,
        "evaluation.inception=named",
        f"evaluation.dinov2='{tiny_dinov2(tmp_path / 'dinov2')}'",
        f"evaluation.clip='{tiny_clip(tmp_path / 'clip', whole=True)}'",
        "evaluation.num_images=10",
        "evaluation.other_images=0",
        "evaluation.reference_images=6",
    )
    by_slot = {
        slot: {r["metric"] for r in results["metrics"] if r["slot"] == slot}
        for slot in ("efficientnet", "inception", "dinov2", "clip")
    }
    distances = {"Frechet distance", "kernel distance", "precision", "recall"}
    assert by_slot == {
        "efficientnet": distances,
        "inception": {*distances, "Inception score"},
        "dinov2": distances,
        "clip": {"CMMD", "CLIP score"},
    }
    for record in results["metrics"]:
        unknown = record["slot"] in ("dinov2", "clip")
        assert ("unverified weights" in record["name"]) == unknown
    names = {r["name"] for r in results["metrics"] if r["slot"] == "inception"}
    assert names >= {"FID", "KID", "Inception score"}
    for alone in ("CLIP score", "Inception score"):
        assert metric(results, alone)["reference"] is None
        assert metric(results, alone)["counts"] == [10, None]
    assert len(results["protocol"]["dinov2.weights_sha256"]) == 64


# What must be said


def test_few_pictures_are_said_to_be_few(run: Path) -> None:
    results = results_of(run, "evaluation.num_images=5", "evaluation.other_images=0")
    (note,) = metric(results, "Frechet distance")["notes"]
    assert "5 images and 6 features: the covariance is singular" in note
    assert "compare it only at equal sizes" in metric(results, "precision")["notes"][-1]
    results = results_of(run, "evaluation.num_images=2", "evaluation.other_images=0")
    assert any("skipped precision (means) and recall: precision and recall with k = 3"
               in event for event in results["events"])  # fmt: skip
    assert "too few to judge" in results["memorisation"]["verdict"]


def test_the_packaged_network_missing_is_said_and_the_rest_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    assert main(["evaluate", str(run), "--num_images", "4", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "skipped the kernel and Frechet distance, precision, and recall" in said
    assert 'pip install "limner[evaluation]"' in said
    results = json.loads((run / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert results["metrics"] == []
    assert results["recall"]
    assert results["held_out_loss"]


def test_without_held_out_pictures_trained_ones_are_drawn_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []
    black = np.zeros((16, 16, 3), dtype=np.uint8)
    draws(monkeypatch, lambda prompt, seed: drawn.append((prompt, seed)) or black)
    data = pictures_in(tmp_path / "data", 9)
    run = made_up_run(tmp_path, data, "data.train_split=1.0")
    results = results_of(run)
    assert results["dataset"]["held_out"] == 0
    assert results["protocol"]["drawn.split"] == "trained"
    assert results["held_out_loss"] is None
    assert any("has no held-out images" in event for event in results["events"])
    assert set(results["recall"]) == {"trained"}
    assert "No images were held out" in results["memorisation"]["verdict"]
    # More pictures than captions: the captions again, with other seeds.
    assert metric(results, "kernel distance")["counts"] == [20, 9]
    assert results["protocol"]["drawn.captions"] == 9
    assert [seed for _, seed in drawn] == list(range(20))
    assert all(prompt == drawn[i % 9][0] for i, (prompt, _) in enumerate(drawn))
    # Real against real is two parts of the reference, and 9 pictures cannot stand for 20.
    floor = metric(results, "kernel distance")["floor"]
    assert sum(floor["counts"]) == 9
    assert "a random split of the reference" in floor["notes"][0]
    assert "instead of" in floor["notes"][1]


def test_settings_that_a_sweep_has_chosen_are_said_to_be(run: Path) -> None:
    record = Record(run / "checkpoint-3" / FILE)
    record.values["stored"] = {
        "sampling": SamplingConfig().model_dump(mode="json"),
        "about": "on half of the held-out captions",
    }
    record.write()
    chosen = "sampling settings chosen by limner sweep: on half of the held-out captions"
    assert chosen in results_of(run)["events"]


def test_captions_of_several_pictures_have_no_recall(tmp_path: Path) -> None:
    data = pictures_in(tmp_path / "data")
    rows = json.loads((data / "metadata.json").read_text("utf-8"))
    rows[3]["text"] = rows[4]["text"]
    (data / "metadata.json").write_text(json.dumps(rows), "utf-8")
    results = results_of(made_up_run(tmp_path, data))
    assert results["recall"] is None
    assert any("2 of 30 captions belong to several images" in e for e in results["events"])


def test_pictures_that_cannot_be_decoded_are_listed_and_left_out(tmp_path: Path) -> None:
    data = pictures_in(tmp_path / "data")
    run = made_up_run(tmp_path, data)
    whole = results_of(run, "evaluation.other_images=30", "evaluation.num_images=30")
    prompts = {
        split: next(p["prompt"] for p in whole["pictures"] if p["split"] == split)
        for split in ("trained", "held out")
    }
    for prompt in prompts.values():
        (data / "images" / f"{prompt.split()[-1]}.png").write_bytes(b"no picture")
    results = results_of(
        run, "data.check_pictures=false", "evaluation.other_images=30", "evaluation.num_images=30"
    )
    keys = {f"images/{prompt.split()[-1]}.png" for prompt in prompts.values()}
    assert {row["key"] for row in results["refused"]} == keys
    assert any("skipped 2 images, such as" in event for event in results["events"])
    held_out = whole["dataset"]["held_out"]
    assert metric(results, "kernel distance")["counts"] == [30, held_out - 1]
    assert results["recall"]["held_out"]["count"] == held_out - 1
    assert results["held_out_loss"]["count"] == held_out - 1
    lines = {line["prompt"]: line for line in results["pictures"]}
    assert lines[prompts["held out"]]["truth"] is lines[prompts["held out"]]["rank"] is None


# What goes wrong on the way


def test_an_interrupted_evaluation_leaves_the_one_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results_of(run)
    files = {p: p.read_bytes() for p in (run / "evaluation").rglob("*") if p.is_file()}
    save, count = Image.Image.save, itertools.count()

    def interrupted(self: Image.Image, *words: Any, **others: Any) -> None:
        if next(count) == 5:
            raise KeyboardInterrupt
        save(self, *words, **others)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results_of(run, "evaluation.seed=1")
    assert {p: p.read_bytes() for p in (run / "evaluation").rglob("*") if p.is_file()} == files
    assert {path.name for path in run.iterdir()} == {"cache", "checkpoint-3", "evaluation"}
    after = results_of(run, "evaluation.seed=1")
    assert after["protocol"]["drawn.seed"] == 1 != before["protocol"]["drawn.seed"]


def test_memory_that_runs_out_means_smaller_parts_and_the_same_pictures(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results_of(run)
    tried: list[int] = []
    generate_batch = ImageGenerator.generate_batch

    def tight(self: Any, prompts: Any, **others: Any) -> Any:
        tried.append(others["batch_size"])
        if others["batch_size"] > 8:
            raise MemoryError("not enough memory")
        return generate_batch(self, prompts, **others)

    monkeypatch.setattr(ImageGenerator, "generate_batch", tight)
    parts = results_of(run)
    assert tried == [64, 32, 16, 8]
    for name in ("kernel distance", "Frechet distance"):
        a, b = metric(whole, name)["value"], metric(parts, name)["value"]
        assert a == pytest.approx(b, rel=0.02)  # at most 1/255 apart in a picture


def test_what_cannot_be_is_said_before_anything_is_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(ImageGenerator, "generate_batch", lambda *_, **__: pytest.fail("drawn"))
    one = ["evaluate", str(run), "--device", "cpu"]
    assert "nothing exists at" in refused([*one, "--dinov2", "./nowhere"], capsys)
    assert "neither a folder" in refused([*one, "--reference", str(tmp_path / "no")], capsys)
    assert "evaluation.num_imagez" in refused([*one, "evaluation.num_imagez=3"], capsys)
    said = refused([*one, "model.hidden_size=128", "data.train_split=0.9"], capsys)
    assert "model.hidden_size: 64 in the checkpoint, 128 requested" in said
    assert "data.train_split: 0.5 in the checkpoint, 0.9" in said
    assert "is inside the data" in refused([*one, "--output", str(tmp_path / "data")], capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    said = refused([*one, "--output", str(tmp_path / "mine")], capsys)
    assert "is not an earlier evaluation (it contains notes.txt)" in said
    assert "missing checkpoint" in refused(["evaluate"], capsys)
    assert "no evaluation at" in refused(["evaluate", "--compare", str(run), str(run)], capsys)
    assert not (run / "evaluation").exists()
    kept = run / "evaluation.json"
    kept.write_text('{"format": 1, "protocol": {}, "metrics": [{"value": 1}]}', "utf-8")
    said = refused(["evaluate", "--compare", str(kept), str(kept)], capsys)
    assert "was not written by limner evaluate" in said
    kept.write_text('{"format": 2, "protocol": {}}', "utf-8")
    assert "format 2" in refused(["evaluate", "--compare", str(kept), str(kept)], capsys)


def test_a_reference_of_ones_own(run: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    pictures_in(some, 12)
    (some / "images" / "5.png").write_bytes(b"")
    results = results_of(run, f"evaluation.reference='{some}'")
    found = metric(results, "kernel distance")
    assert found["counts"] == [20, 11]
    assert [row["key"] for row in results["refused"]] == ["some/images/5.png"]
    archive = tmp_path / "reference.npz"
    array = np.stack([np.array(Image.open(some / "images" / f"{i}.png")) for i in range(4, 12)
                      if i != 5])  # fmt: skip
    np.savez(archive, array)
    results = results_of(run, f"evaluation.reference='{archive}'")
    assert metric(results, "kernel distance")["counts"] == [20, 7]
    assert results["protocol"]["reference.resize"] == "16 x 16 pixels, as published"


def test_each_checkpoint_that_is_named_has_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    # A file to share does not say where its pictures are.
    data, cache = f"data.dataset_path='{run.parent / 'data'}'", f"cache.folder='{run / 'cache'}'"

    def folder_of(where: Path, output: Path | None = None) -> Path:
        few = ["evaluation.num_images=4", "evaluation.other_images=0", data, cache]
        return evaluate(where, few, output, device="cpu").folder

    assert folder_of(run) == run / "evaluation"
    assert folder_of(run / "checkpoint-3").name == "evaluation-checkpoint-3"
    assert folder_of(run, tmp_path / "there") == tmp_path / "there"
    weights = tmp_path / "painter.safetensors"
    assert main(["export", str(run), "--output", str(weights)]) == 0
    assert folder_of(weights) == tmp_path / "painter-evaluation"
    a, b = (
        json.loads((folder / "evaluation.json").read_text("utf-8"))
        for folder in (run / "evaluation", tmp_path / "painter-evaluation")
    )
    assert a["checkpoint"]["weights_sha256"] == b["checkpoint"]["weights_sha256"]
    assert a["metrics"] == b["metrics"]
