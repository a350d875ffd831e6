"""Checkpoints of strangers: each lie in one of their files is a sentence that names it, and no file
takes more memory than it has."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from made_up import made_up_checkpoint
from safetensors.torch import load_file, save_file

from limner import ImageGenerator
from limner.checkpoint import manifest
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import load_run_config
from limner.checkpoint.locate import AVERAGED, TOKENIZER
from limner.checkpoint.manifest import MANIFEST, damage
from limner.checkpoint.sharded import read_index, read_shards, write_shard
from limner.checkpoint.single_file import WeightsFile, write_weights_file
from limner.checkpoint.state import TrainingState
from limner.config import load_config
from limner.errors import LimnerError
from limner.files.small_files import MOST_BYTES, parse_json, parse_yaml, read_text
from limner.files.tensor_files import load_tensors
from limner.models.size import check_memory, least_parameters
from limner.models.text_to_image import build_model
from limner.text.tokenizer import CaptionTokenizer
from limner.training.monitor.run_log import read_log

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGED = "a: &a {k: x}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join(['*' + chr(97 + i)] * 9)}]}}\n"
    for i in range(9)
)
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint-3")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint-3"))


@pytest.fixture
def reseal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A stranger makes the checksums fit."""
    monkeypatch.setattr(manifest, "_is_complete", lambda path: True)

    def reseal(folder: Path) -> None:
        (folder / MANIFEST).unlink()
        manifest.seal(folder)

    return reseal


def refused(read: Callable[[], Any], *said: str) -> None:
    """A LimnerError of a few lines that says all that."""
    with pytest.raises(LimnerError) as error:
        read()
    text = str(error.value)
    assert all(word in text for word in said), text
    assert len(text) < 2000


# JSON and YAML


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 100,000 values"),
        (MERGED, "more than 100,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 5_000, "nested too deeply"),
        ("data: {image_size: " + "9" * 5_000 + "}", "not valid YAML"),
        ("data: {image_size: 2020-99-99}", "not valid YAML"),
        ("data: {image_size: !!bool maybe}", "not valid YAML"),
        ("data: {image_size: !!int ''}", "not valid YAML"),
        (
            "data: {image_size: 0x" + "f" * 5_000 + "}",
            "data.image_size: must be less than or equal",
        ),
        ("training: {learning_rate: 0x" + "f" * 5_000 + "}", "training.learning_rate"),
        ("data: {languages: [[[[[[[[x]]]]]]]]}", "data.languages"),
        ("data:\n  ? " + "k" * 100_000 + "\n  : 1", "is not a known key"),
        ("data: {dataset_path: [" + "x, " * 50_000 + "]}", "data.dataset_path: must be text"),
        ("x" * 2**21, "more than 1,048,576 bytes"),
        ("a: \0", "not valid YAML"),
    ],
)
def test_a_configuration_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    refused(lambda: load_config(path), str(path), said)


def test_references_that_repeat_little_are_read() -> None:
    values = parse_yaml("a: &a {k: 1}\nb: *a\nc: {<<: *a, l: 2}", "it")
    assert values == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}}


@pytest.mark.parametrize("value", ["2020-99-99", "[" * 5_000, "*x", "9" * 5_000])
def test_an_override_that_is_no_yaml_is_words(value: str) -> None:
    refused(lambda: load_config(None, [f"data.image_size={value}"]), "data.image_size", "must be")


def test_a_model_that_starts_from_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"training: {{init_from: '{tmp_path}'}}", encoding="utf-8")
    (tmp_path / "training_state.json").write_text("{}")
    refused(lambda: load_run_config(path), "training.init_from", "circle")


def test_a_file_that_is_no_small_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # of nothing; it takes no room on the disk
    refused(lambda: read_text(path), str(path), f"more than {MOST_BYTES:,} bytes")
    refused(lambda: read_text(tmp_path), str(tmp_path))
    refused(lambda: parse_json("1" * 5_000, "it"), "it is not valid JSON")
    refused(lambda: parse_json(DEEP, "it"), "nested too deeply")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"files": 3}',
        b'{"files": {"model.pt": null}}',
        b'{"files": {"model.pt": {"bytes": ' + b"9" * 5_000 + b', "sha256": ""}}}',
        b'{"files": {"model.pt": {"bytes": Infinity, "sha256": ""}}}',
        b'{"files": {"a\\u0000b": {"bytes": 1, "sha256": ""}}}',
        b'{"files": {"\\ud800": {"bytes": 1, "sha256": ""}}}',
        b'{"files": {"\\u001b[2J": {"bytes": 1, "sha256": ""}}}',
        b'{"files": {"../x": {"bytes": 1, "sha256": ""}}}',
        b'{"files": {"' + b"x" * 5_000 + b'": {"bytes": 1, "sha256": ""}}}',
        DEEP.encode(),
        b'{"a":' * 100_000,
    ],
)
def test_a_manifest_that_lies_is_told(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    found = damage(folder)
    assert found is not None
    assert len(found) < 6_000
    refused_or_long = pytest.raises(LimnerError, match="damaged")
    with refused_or_long:
        ImageGenerator(folder, device="cpu")


@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", b"3", DEEP.encode(), b"\xff", b'{"step": NaN}', b'{"step": "x"}',
     b'{"step": 1e999}', b'{"\\u001b[2J": 1}', b'{"step": ' + b"9" * 5_000 + b"}"],
)  # fmt: skip
def test_a_training_state_that_lies_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "training_state.json"
    path.write_bytes(content)
    refused(lambda: TrainingState.read(path), str(path))


def test_a_log_of_one_endless_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.files.small_files.MOST_BYTES", 1_000)
    path = tmp_path / "log.jsonl"
    whole = json.dumps({"kind": "train", "step": 1, "said": "a\u2028b"}, ensure_ascii=False)
    path.write_text("x" * 100_000 + "\n" + whole + "\n" + "[" * 900 + "\n", encoding="utf-8")
    assert read_log(path) == [{"kind": "train", "step": 1, "said": "a\u2028b"}]


# Sizes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.num_layers", "1000000000"),
        ("model.hidden_size", "1000000000000"),
        ("model.num_heads", "1000000000000"),
        ("model.mlp_ratio", "1e300"),
        ("model.in_channels", "1000000000"),
        ("model.patch_size", "1000000000"),
        ("text_encoder.vocab_size", "1000000000000"),
        ("text_encoder.num_layers", "1000000000"),
        ("text_encoder.hidden_size", "1000000000000"),
        ("text_encoder.max_length", "1000000000000"),
        ("data.image_size", "1000000000"),
        ("data.buckets", "[[1000000000, 4]]"),
        ("training.batch_size", "1000000000000"),
        ("training.num_workers", "1000000000"),
        ("training.prefetch_factor", "1000000000"),
        ("scheduler.num_train_timesteps", "1000000000000"),
        ("sampling.num_inference_steps", "1000000000000"),
        ("evaluation.num_images", "1000000000000"),
        ("lora.rank", "1000000000000"),
        ("autoencoder.base_channels", "8000000000"),
        ("autoencoder.crop", "1000000000000"),
    ],
)
def test_a_number_beyond_every_machine_is_told_with_its_limit(key: str, value: str) -> None:
    refused(lambda: load_config(None, [f"{key}={value}"]), key, "less than or equal to", "got 1" if
            value[0] == "1" and value[1] != "e" else "got")  # fmt: skip


def test_too_many_patches_are_told() -> None:
    refused(
        lambda: load_config(None, ["data.image_size=4096", "model.patch_size=1"]),
        "data.image_size",
        "16,777,216",
    )


def test_a_model_larger_than_the_machine_is_told_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    huge = load_config(
        None, ["model.hidden_size=65536", "model.num_heads=1024", "model.num_layers=1024"]
    )
    refused(lambda: build_model(huge, 4096), "model.hidden_size 65,536", "GiB of memory")
    small = load_config(None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"total": 10**6})())
    refused(lambda: check_memory(small, 4096), "model.num_layers 8")


@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_a_model_has_at_least_the_weights_that_are_counted(architecture: str) -> None:
    for width, ratio in ((64, 1.0), (128, 4.0), (192, 2.5)):
        how = [f"model.architecture={architecture}", f"model.hidden_size={width}"]
        how += ["model.num_heads=4", f"model.mlp_ratio={ratio}", "model.num_layers=3"]
        config = load_config(None, how)
        count = sum(p.numel() for p in build_model(config, 500).parameters())
        assert 0.4 * count < least_parameters(config, 500) <= count


def test_a_small_file_cannot_ask_for_a_large_model(folder: Path) -> None:
    path = folder / "config.yaml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("num_layers: 1\n", "num_layers: 1000\n"), encoding="utf-8")
    refused(lambda: Checkpoint.open(folder), str(folder), "model.num_layers", "damaged, or cut off")


# Tokenizers


def with_tokenizer(change: Callable[[dict[str, Any]], None], folder: Path) -> str:
    values = json.loads((folder / TOKENIZER).read_text("utf-8"))
    change(values)
    return json.dumps(values)


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["model"]["vocab"].update({"zz": 10**6}), "model.vocab has the id 1,000,000"),
        (lambda v: v.update(normalizer=REPLACE), "normalizer"),
        (
            lambda v: v.update(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 60}),
            "normalizer",
        ),
        (
            lambda v: v.update(
                normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 10**4}
            ),
            "normalizer",
        ),
        (lambda v: v.update(normalizer={"type": "Prepend", "prepend": "x" * 10**6}), "normalizer"),
        (lambda v: v.update(normalizer={"type": "Sequence"}), "normalizer"),
        (lambda v: v.update(normalizer=[3]), "normalizer"),
        (
            lambda v: v.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            ),
            "pre_tokenizer",
        ),
        (
            lambda v: v.update(
                padding={
                    "strategy": {"Fixed": 10**12},
                    "direction": "Right",
                    "pad_to_multiple_of": None,
                    "pad_id": 0,
                    "pad_type_id": 0,
                    "pad_token": "x",
                }
            ),
            "padding",
        ),
        (lambda v: v.update(post_processor={"type": "TemplateProcessing"}), "post_processor"),
        (lambda v: v["model"].update(type="Unigram"), "model"),
        (lambda v: v.update(model=None), "tokenizer"),
    ],
)
def test_a_tokenizer_that_lies_is_told(
    change: Callable[[dict[str, Any]], None], said: str, folder: Path
) -> None:
    path = folder / TOKENIZER
    text = with_tokenizer(change, folder)
    refused(lambda: CaptionTokenizer.from_text(text, 16, path), str(path), said)


@pytest.mark.parametrize("content", [b"null", b"[]", b"\xff", DEEP.encode(), b"{}", b"9" * 5_000])
def test_what_is_no_tokenizer_is_told(content: bytes, folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(content)
    refused(lambda: CaptionTokenizer.load(folder / TOKENIZER, 16), TOKENIZER, "is not")


# Tensors


def plain(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "model.pt")


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: torch.empty(t.shape, device="meta"), "meta"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: t.to(torch.complex64), "complex"),
        (lambda t: torch.zeros(1).expand(t.shape), "most of which are not in the file"),
        (lambda t: torch.zeros(1).expand(10**12), "most of which are not in the file"),
        (lambda t: torch.full_like(t, float("nan")), "NaN"),
        (lambda t: torch.full_like(t, float("inf")), "infinity"),
        (lambda t: t.to(torch.int32), "int32 instead of float32"),
        (lambda t: torch.zeros(0), "(0,) in the file"),
        (lambda t: "words", "str in the file"),
        (lambda t: {"a": {"b": t.to_sparse()}}, "sparse"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_weight_is_told(
    lie: Callable[[torch.Tensor], Any], said: str, folder: Path, reseal: Callable[[Path], None]
) -> None:
    weights = plain(folder)
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    torch.save({**weights, name: lie(weights[name])}, folder / "model.pt")
    reseal(folder)
    opened = Checkpoint.open(folder)
    model = build_model(opened.config, opened.tokenizer.text_size if opened.tokenizer else 0)
    refused(lambda: opened.load_weights(model, averaged=False), "model.pt", said, name)


@pytest.mark.parametrize("lie", ["nan", "int", "name"])
def test_averaged_weights_that_are_none_are_told(
    lie: str, folder: Path, reseal: Callable[[Path], None]
) -> None:
    weights = load_file(folder / AVERAGED)
    name = next(iter(weights))
    if lie == "nan":
        weights[name] = weights[name] * float("nan")
    elif lie == "int":
        weights[name] = weights[name].to(torch.int64)
    else:
        weights["\x1b[2J" * 1_000] = torch.zeros(1)
    save_file(weights, folder / AVERAGED)
    reseal(folder)
    refused(lambda: ImageGenerator(folder, device="cpu"), AVERAGED)


def test_a_packed_file_is_not_unpacked(folder: Path, tmp_path: Path) -> None:
    """A zip of zeros is a thousandth of what it unpacks to."""
    stored, packed = tmp_path / "stored.pt", tmp_path / "packed.pt"
    torch.save({"x": torch.zeros(10**6)}, stored)
    with zipfile.ZipFile(stored) as there, zipfile.ZipFile(packed, "w") as here:
        for entry in there.infolist():
            here.writestr(entry.filename, there.read(entry), zipfile.ZIP_DEFLATED)
    assert load_tensors(stored)["x"].numel() == 10**6
    refused(lambda: load_tensors(packed), str(packed), "unpacks to more bytes")


def test_one_tensor_that_is_named_a_million_times_is_refused(tmp_path: Path) -> None:
    shared = torch.zeros(10**5)
    torch.save({str(i): shared[:] for i in range(200)}, tmp_path / "x.pt")
    refused(lambda: load_tensors(tmp_path / "x.pt"), "x.pt", "say that they take 80,000,000 bytes")
    torch.save({str(i): shared for i in range(3)}, tmp_path / "tied.pt")
    assert len(load_tensors(tmp_path / "tied.pt")) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["state"][0].update(exp_avg=torch.zeros(3)),
        lambda s: s["state"][0].update(exp_avg=torch.tensor([float("nan")])),
        lambda s: s["state"].update({0: "words"}),
        lambda s: s["state"].update({10**6: {"exp_avg": torch.zeros(3)}}),
        lambda s: s.pop("state"),
        lambda s: s.update(param_groups=[]),
    ],
)
def test_an_optimizer_s_state_that_lies_is_told(
    change: Callable[[dict[str, Any]], Any], folder: Path, reseal: Callable[[Path], None]
) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    state = optimizer.state_dict()
    change(state)
    torch.save({"adamw": state}, folder / "optimizer.pt")
    reseal(folder)
    opened = Checkpoint.open(folder)
    refused(lambda: opened.load_optimizers({"adamw": optimizer}), "optimizer.pt", "adamw")


def test_a_header_of_a_hundred_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 100 * 2**30) + b"{}")
    refused(lambda: WeightsFile.open(path), str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", DEEP),
        ("config", "[]"),
        ("config", "{}" + " " * 2**21),
        ("config", json.dumps({"model": {"num_layers": 10**9}})),
        ("config", json.dumps({"model": {"num_layers": 1000}})),
        ("training", DEEP),
        ("training", "[]"),
        ("training", '{"step": "many"}'),
        ("training", '{"step": ' + "9" * 5_000 + "}"),
        ("lineage", DEEP),
        ("lineage", "[]"),
        ("tokenizer", DEEP),
        ("tokenizer", "null"),
    ],
)
def test_a_header_that_lies_is_told(key: str, value: str, folder: Path, tmp_path: Path) -> None:
    opened = Checkpoint.open(folder)
    path = tmp_path / "x.safetensors"
    parts = opened.config, opened.tokenizer, opened.state, opened.lineage
    write_weights_file(path, opened.tensors(), *parts)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() | {key: value}
    save_file(load_file(path), path, metadata)
    refused(lambda: WeightsFile.open(path), str(path))


@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", DEEP.encode(), b'{"count": "3", "parts": {}}', b'{"count": 1e9, "parts": {}}',
     b'{"count": true, "parts": {}}', b'{"count": 1, "parts": []}'],
)  # fmt: skip
def test_an_index_of_shards_that_lies_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "shards.json").write_bytes(content)
    refused(lambda: read_index(tmp_path), "shards.json")


@pytest.mark.parametrize(
    "plain", [{}, {"dict": 3}, {"dict": [[1]]}, {"tensor": []}, {"tensor": "none"}, {"list": None}]
)
def test_shards_that_lie_are_told(plain: Any, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, 1, {"model": {"w": torch.zeros(3)}})
    index = {"count": 1, "parts": {"model": plain}}
    (tmp_path / "shards.json").write_text(json.dumps(index))
    refused(lambda: read_shards(tmp_path, "model"), str(tmp_path))
