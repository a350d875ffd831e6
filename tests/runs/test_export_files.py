"""What `limner export` writes: precision, one file of weights, all of it or nothing."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import PROMPTS, drawn_by_limner, generators, keep_modules_in, load, pixels, text
from made_up import made_up_checkpoint
from PIL import Image
from pretrained import (
    tiny_clip,
)
from recording_hub import Recorded
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from limner import ImageGenerator
from limner.apps.publishing.export import export, in_precision
from limner.checkpoint.single_file import WeightsFile
from limner.cli import main
from limner.errors import LimnerError


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    keep_modules_in(tmp_path_factory.mktemp("modules"), monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


# Precision


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["modern", "dit"])
def test_half_precision_is_half_the_size_and_nearly_the_picture(
    tmp_path: Path, dtype: str, architecture: str
) -> None:
    clip = tiny_clip(tmp_path / "clip")
    made = [f"model.architecture={architecture}", *text(clip)]
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *made)
    there = drawn_by_limner(checkpoint)
    full = export(checkpoint, tmp_path / "full.safetensors")
    file = export(checkpoint, tmp_path / "half.safetensors", dtype=dtype)
    assert file.stat().st_size < 0.55 * full.stat().st_size
    kinds = {str(tensor.dtype) for tensor in load_file(file).values()}
    assert kinds == {f"torch.{dtype}"}
    assert np.abs(drawn_by_limner(file) - there).mean() < 0.5
    out = export(checkpoint, tmp_path / "out", "diffusers", dtype)
    for options in ({}, {"dtype": getattr(torch, dtype)}):
        pipe = load(out, **options)
        assert np.abs(pixels(pipe(PROMPTS, generator=generators()).images) - there).mean() < 2


# One file of weights


def test_one_file_draws_the_same_to_the_bit(checkpoint: Path, tmp_path: Path) -> None:
    words = ["export", str(checkpoint), "--output", str(tmp_path / "model.safetensors")]
    assert main(words) == 0
    file = tmp_path / "model.safetensors"
    assert np.array_equal(drawn_by_limner(file), drawn_by_limner(checkpoint))
    assert file.stat().st_size < 1.1 * (checkpoint / "ema.safetensors").stat().st_size
    image = tmp_path / "a.png"
    assert (
        main(["generate", str(file), "a small red circle", "--seed", "1", "--output", str(image)])
        == 0
    )
    assert np.array_equal(pixels([Image.open(image)])[0], drawn_by_limner(checkpoint)[0])


def test_the_file_says_what_it_is_to_any_reader(checkpoint: Path, tmp_path: Path) -> None:
    file = export(checkpoint, tmp_path / "folder")
    assert file == tmp_path / "folder" / "limner.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata["config"])
    assert config["model"]["hidden_size"] == 64
    assert config["cache"]["folder"] == "./cache", "where things were is nobody's business"
    assert json.loads(metadata["tokenizer"])["model"]["type"] == "BPE"
    assert json.loads(metadata["training"]) == {"step": 3, "images": 12, "seconds": 4.5}
    found = WeightsFile.open(file)
    assert found.config.model.hidden_size == 64
    averaged = load_file(checkpoint / "ema.safetensors")
    assert found.tensors().keys() == averaged.keys()
    again = WeightsFile.open(export(file, tmp_path / "again.safetensors"))
    assert (again.sha256, again.config) == (found.sha256, found.config)


def test_a_file_that_is_damaged_or_foreign_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = export(checkpoint, tmp_path / "a.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(LimnerError, match="checksum mismatch"):
        ImageGenerator(file, device="cpu")
    file.write_bytes(content[:-50])
    with pytest.raises(LimnerError, match="cannot be read as safetensors"):
        ImageGenerator(file, device="cpu")
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, other)
    with pytest.raises(LimnerError, match="was not written by limner export"):
        ImageGenerator(other, device="cpu")
    with pytest.raises(LimnerError, match="is not an earlier export"):
        export(checkpoint, other)
    assert load_file(other)["a"] == 1


def test_a_file_of_a_model_with_pretrained_parts_finds_them(tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    checkpoint = made_up_checkpoint(tmp_path / "checkpoint", *text(clip))
    there = drawn_by_limner(checkpoint)
    file = export(checkpoint, tmp_path / "a.safetensors")
    assert np.array_equal(drawn_by_limner(file), there)
    moved = clip.rename(tmp_path / "elsewhere")
    with pytest.raises(LimnerError, match="is not a folder"):
        ImageGenerator(file, device="cpu")
    assert np.array_equal(drawn_by_limner(file, text_encoder=moved), there)
    # And writing weights alone asks for no pretrained part.
    export(checkpoint, tmp_path / "b.safetensors")


# Whole or not at all


def test_a_folder_is_replaced_only_by_an_export_of_its_own_kind(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(checkpoint, out, "diffusers")  # an empty folder may be filled
    export(checkpoint, out, "diffusers")
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(LimnerError, match="contains other files"):
        export(checkpoint, out, "diffusers")
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(LimnerError, match="contains other files"):
        export(checkpoint, checkpoint, "diffusers")


@pytest.mark.parametrize("format", ["diffusers", "safetensors"])
def test_an_export_that_fails_leaves_what_was_there(
    checkpoint: Path, tmp_path: Path, format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from limner.apps.publishing import diffusers_folder
    from limner.checkpoint import single_file

    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    export(checkpoint, out, format)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for module in (diffusers_folder, single_file):
        monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(checkpoint, out, format, "float16")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_real_full_disk_is_told_in_a_sentence(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """safetensors has an error of its own for it. (Here a file may have 20 kB, a part of them.)"""
    resource = pytest.importorskip("resource", reason="limits of this kind are POSIX")
    words = ["export", str(checkpoint), "--output", str(tmp_path / name)]
    words += ["--format", "diffusers"] if name == "out" else []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    limited = (
        "import resource, sys; from limner.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {limits[1]}))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert "free some disk space, or choose another disk" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_and_how_to_load_it(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["it's.safetensors"], ["out", "--format", "diffusers", "--dtype", "bfloat16"]):
        assert main(["export", str(checkpoint), "--output", *words]) == 0
        sizes, _, snippet = capsys.readouterr().out.partition("\n\n")
        written = tmp_path / words[0]
        files = [p for p in written.rglob("*") if p.is_file()] or [written]
        for path in files:
            assert f"{path.stat().st_size:>14,}  " in sizes
            assert path.name in sizes
        assert ("bytes in total" in sizes) == (len(files) > 1)
        exec(snippet, {})
        assert (tmp_path / "output.png").is_file()
        (tmp_path / "output.png").unlink()


def test_the_weights_of_the_last_update_are_there_if_asked_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "last.safetensors"
    words = ["--output", str(out), "--weights", "last"]
    assert main(["export", str(checkpoint), *words]) == 0
    last = torch.load(checkpoint / "model.pt")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(out).items())
    assert main(["export", str(out), *words]) == 2
    assert "contains only one set of weights" in capsys.readouterr().err


def test_what_cannot_be_exported_is_told(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(LimnerError, match="no checkpoint at"):
        export(tmp_path / "no", out)
    with pytest.raises(LimnerError, match="unknown dtype 'int8'; use one of float32"):
        export(checkpoint, out, dtype="int8")
    with pytest.raises(LimnerError, match="unknown format 'onnx'; use one of safetensors"):
        export(checkpoint, out, "onnx")  # type: ignore[arg-type]
    with pytest.raises(
        LimnerError, match=r"denoiser\.a contains values that float16 cannot represent"
    ):
        in_precision({"denoiser.a": torch.tensor([1e6])}, "float16")
    incomplete = shutil.copytree(checkpoint, tmp_path / "incomplete")
    (incomplete / "config.yaml").unlink()
    with pytest.raises(LimnerError, match=r"not a complete checkpoint: config\.yaml missing"):
        export(incomplete, out)
    assert not out.exists()


# The guide


def test_what_the_guide_says_to_type_works_as_typed(
    hub: Recorded, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "outputs" / "demo")
    done = []
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        if language == "python" and "HfApi" not in content:
            exec(content, {})
            done.append("python")
        for line in content.splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            # Of a run that is not here, of other weights, and of whole trainings: tested elsewhere.
            elsewhere = {"train", "me/cats", "me/mine"} & {*words}
            if words[0] == "limner" and not elsewhere:
                assert main(words[1:]) == 0
                done.append(words[1])
    assert done == [
        *("export", "export", "generate", "python", "export", "python"),
        *("publish", "publish", "publish", "publish", "generate", "generate"),
    ]
    assert (tmp_path / "output.png").is_file()
    assert hub.files.keys() == {"me/apple-painter", "spaces/me/apple-painter"}


def test_a_header_is_verified_and_one_of_an_earlier_version_is_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = export(checkpoint, tmp_path / "a.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    number = WeightsFile.open(file).state.step
    changed = {"training": metadata["training"].replace(f": {number}", f": {number + 1}", 1)}
    save_file(weights, tmp_path / "b.safetensors", metadata | changed)
    with pytest.raises(LimnerError, match="its header is not what was written"):
        WeightsFile.open(tmp_path / "b.safetensors")
    del metadata["header_sha256"]
    save_file(weights, tmp_path / "c.safetensors", metadata)
    WeightsFile.open(tmp_path / "c.safetensors")
