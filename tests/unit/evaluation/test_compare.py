"""`limner evaluate --compare`: numbers are compared with their like, and only with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import (
    OF_A_FOLDER,
    Means,
    draws,
    made_up_run,
    metric,
    pictures_in,
    refused,
    results_of,
    truths,
)
from made_up import made_up_checkpoint
from pretrained import tiny_dinov2

from limner.cli import main
from limner.evaluation import metrics
from limner.evaluation.compare import compare, numbers
from limner.metrics.interval import interval_of_difference, share


@pytest.fixture(autouse=True)
def _quick_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "EfficientNet", Means)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a checkpoint that knows of a folder of pictures, half of them held out."""
    return made_up_run(tmp_path, pictures_in(tmp_path / "data"))


def changed(results: dict[str, Any], **protocol: Any) -> dict[str, Any]:
    new = {key.replace("__", "."): value for key, value in protocol.items()}
    return results | {"protocol": results["protocol"] | new}


def test_what_was_made_in_the_same_way_is_compared(run: Path, capsys: Any) -> None:
    results_of(run)
    made_up_checkpoint(  # another model: wider, and as if trained for longer
        run / "checkpoint-9",
        f"data.dataset_path='{run.parent / 'data'}'",
        *(*OF_A_FOLDER, "model.hidden_size=128"),
    )
    results_of(run / "checkpoint-9")
    other = run / "evaluation-checkpoint-9"
    assert main(["evaluate", "--compare", str(run), str(other)]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    names = ("held-out loss", "recall@1, held-out captions", "Frechet distance (means)")
    assert set(names) <= set(lines)
    files = [folder / "evaluation.json" for folder in (run / "evaluation", other)]
    a, b = (json.loads(file.read_text("utf-8")) for file in files)
    value = f"{metric(a, 'kernel distance')['value']:.4g} ("
    assert value in lines["kernel distance (means)"]
    assert f"{b['held_out_loss']['mean']['value']:.4g} (" in lines["held-out loss"]
    assert "significance is unknown" in lines["Frechet distance (means)"]


def test_what_was_made_differently_is_refused_with_both_values(run: Path, capsys: Any) -> None:
    results_of(run)
    results_of(run, "sampling.num_inference_steps=3", output=run / "more")
    said = refused(["evaluate", "--compare", str(run), str(run / "more")], capsys)
    assert "sampling.num_inference_steps: 2, 3" in said
    for name in ("kernel distance", "recall@1", "distance to the nearest training image"):
        assert name in said
    assert "held-out loss" not in said  # it knows nothing of the sampler
    allowed = ["--varying", "sampling.num_inference_steps"]
    assert main(["evaluate", "--compare", str(run), str(run / "more"), *allowed]) == 0
    assert "sampling.num_inference_steps differs: 2 and 3" in capsys.readouterr().out


def test_each_number_depends_on_what_made_it_and_on_nothing_else(run: Path) -> None:
    a = results_of(run)
    every = {number.name for number in numbers(a)}
    distances = {f"{n} (efficientnet)" for n in (
        "Frechet distance", "kernel distance", "precision", "recall")}  # fmt: skip
    assert distances < every
    assert not compare(a, a).refused
    assert {pair.name for pair in compare(a, a).pairs} == every

    def not_compared(**protocol: Any) -> set[str]:
        return set(compare(a, changed(a, **protocol)).refused)

    loss = {"held-out loss"}
    assert not_compared(method=2) == every
    assert not_compared(sampling__guidance_scale=1.0) == every - loss
    assert not_compared(drawn__dtype="bfloat16") == every - loss
    assert not_compared(drawn__prompts="0") == distances
    assert not_compared(reference__contents="0") == distances
    assert not_compared(efficientnet__weights_sha256="0") == distances
    assert (
        not_compared(asked__prompts="0")
        == not_compared(data__trained="0")
        == (every - distances - loss)
    )
    assert not_compared(loss__pictures="0") == not_compared(loss__prediction_type="sample") == loss
    assert not_compared(software__torch="1.0") == set()
    assert compare(a, changed(a, software__torch="1.0")).said == (
        f"software.torch differs: {torch.__version__} and 1.0",
    )
    # A key that one of them does not know is a difference, too.
    without = a | {"protocol": {k: v for k, v in a["protocol"].items() if k != "sampling.shift"}}
    assert compare(a, without).differing == {"sampling.shift": (1.0, "(not there)")}


def test_other_weights_of_one_network_leave_the_others_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [f"evaluation.dinov2='{tiny_dinov2(tmp_path / 'dinov2')}'", "evaluation.num_images=8"]
    a = results_of(run, *few)
    monkeypatch.setattr(metrics, "EfficientNet", lambda device: Means(sha256="cd" * 32))
    b = results_of(run, *few)
    found = compare(a, b)
    assert found.refused
    assert {key for keys in found.refused.values() for key in keys} == {
        "efficientnet.weights_sha256"
    }
    assert all("efficientnet" in name for name in found.refused)
    assert {"kernel distance (dinov2)", "held-out loss"} <= {pair.name for pair in found.pairs}
    assert found.differing == {"efficientnet.weights_sha256": ("ab" * 32, "cd" * 32)}
    only = compare(a, results_of(run, "evaluation.num_images=8")).only
    assert only["kernel distance (dinov2)"] == "A"


def test_a_difference_within_chance_is_no_difference() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, p. 873), table II (a), method 10: 56/70 - 48/80.
    found = interval_of_difference(share(56, 70), share(48, 80))
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_the_better_one_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = truths(run)
    bad = results_of(run)
    draws(monkeypatch, lambda prompt, seed: known[prompt])
    good = results_of(run)
    verdicts = {pair.name: pair.verdict for pair in compare(good, bad).pairs}
    assert verdicts["kernel distance (efficientnet)"] == "A is better"
    assert verdicts["recall@1, held-out captions"] == "A is better"
    assert verdicts["held-out loss"] == "no significant difference"
    verdicts = {pair.name: pair.verdict for pair in compare(bad, good).pairs}
    assert verdicts["kernel distance (efficientnet)"] == "B is better"
