"""`limner doctor`: what it sees, what it says, and the command that mends it."""

import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import TINY

from limner import device as devices
from limner.apps import compiled_code, doctor
from limner.apps.doctor import Finding, examine, gpu_findings, lines
from limner.cli import main
from limner.config import Config

Build = Callable[..., Config]


def named(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def test_a_machine_on_which_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, f"training.output_dir={tmp_path}"]
    assert main(["doctor", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {"python", "packages", "device", "precision", "compile", "memory", "disk", "data"}
    assert {f["name"] for f in found} >= names
    assert {f["verdict"] for f in found} <= {"pass", "warn"}
    assert main(["doctor", *words]) == 0
    said = capsys.readouterr().out
    assert "24 pictures with captions in shapes" in said
    assert "0 to fix" in said
    assert not list(tmp_path.iterdir())


def folder_of_pictures(folder: Path, good: int, bad: int) -> None:
    """A set of pairs, the last of whose pictures are cut off."""
    folder.mkdir()
    for number in range(good + bad):
        path = folder / f"{number:03d}.png"
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
        path.with_suffix(".txt").write_text(f"picture {number}", "utf-8")
        if number >= good:
            path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("good", "bad", "verdict", "said"),
    [
        (5, 0, "pass", "all of them can be decoded"),
        (4, 2, "warn", "2 of them cannot be decoded, first: 004.png: "),
        (0, 3, "fail", "3 of them cannot be decoded, first: 000.png: "),
    ],
)
def test_pictures_that_cannot_be_decoded_are_counted(
    good: int, bad: int, verdict: str, said: str, tmp_path: Path, tiny_config: Build
) -> None:
    folder_of_pictures(tmp_path / "my set", good, bad)
    nameless = ("data.dataset_name=null", "data.num_samples=null")
    config = tiny_config(*nameless, f"data.dataset_path='{tmp_path / 'my set'}'")
    counted, decoded = doctor.data(config)
    assert f"{good + bad} pictures with captions" in counted.seen
    assert decoded.verdict == verdict
    assert said in decoded.seen
    assert decoded.fix == f"limner check-data '{tmp_path / 'my set'}'   (checks all of them)"


def test_of_many_pictures_a_sample_is_decoded(
    tmp_path: Path, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOOKED_AT", 4)
    folder_of_pictures(tmp_path / "set", 0, 9)
    nameless = ("data.dataset_name=null", "data.num_samples=null")
    _, decoded = doctor.data(tiny_config(*nameless, f"data.dataset_path='{tmp_path / 'set'}'"))
    assert "4 of a sample of 4 cannot be decoded" in decoded.seen
    for path in (tmp_path / "set").glob("*.png"):
        Image.new("RGB", (16, 16)).save(path)
    _, decoded = doctor.data(tiny_config(*nameless, f"data.dataset_path='{tmp_path / 'set'}'"))
    assert decoded.seen == "a sample of 4 can be decoded"


def test_pictures_that_are_drawn_are_not_decoded(tiny_config: Build) -> None:
    assert [finding.verdict for finding in doctor.data(tiny_config())] == ["pass"]


def test_what_is_to_be_mended_is_said_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"training.output_dir={tmp_path}", "data.dataset_name=null"]
    assert main(["doctor", *words, f"data.dataset_path={tmp_path / 'nowhere'}"]) == 1
    said = capsys.readouterr().out
    assert f"fail  data         folder not found: {tmp_path / 'nowhere'}" in said
    assert "1 to fix" in said


@pytest.mark.parametrize(
    ("gpus", "driver", "torch_cuda", "sees", "wanted", "verdict", "seen", "fix"),
    [
        ([], None, None, False, "auto", None, "", ""),
        ([], None, None, False, "cuda", "fail", "neither the driver nor torch", "device=auto"),
        (["RTX 4090"], "12.8", "12.8", True, "auto", "pass", "RTX 4090; torch is built", ""),
        (
            *(["RTX 4090"], "12.9", None, False, "auto", "fail"),
            *("this torch (2.13.0) is built without CUDA", "torch --index-url * /whl/cu128"),
        ),
        (
            *(["RTX 2080"], "12.6", "13.0", False, "auto", "fail"),
            *(
                "supports CUDA up to 12.6, but torch is built for 13.0",
                "update the NVIDIA driver * /cu126",
            ),
        ),
        (["A100"], "13.0", "12.8", False, "auto", "fail", "finds none", "restart the machine"),
    ],
)
def test_gpu_driver_and_torch_are_held_against_each_other(
    gpus: list[str],
    driver: str | None,
    torch_cuda: str | None,
    sees: bool,
    wanted: str,
    verdict: str | None,
    seen: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = list(gpu_findings(gpus, driver, torch_cuda, sees, "2.13.0", wanted))
    assert [f.verdict for f in found] == ([verdict] if verdict else [])
    for finding in found:
        assert seen in finding.seen
        assert all(part in (finding.fix or "") for part in fix.replace("* ", "").split(" /"))


def test_hidden_gpus_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = gpu_findings(["A100"], "13.0", "12.8", False, "2.13.0", "auto")
    assert "CUDA_VISIBLE_DEVICES is ''" in found.seen
    assert found.fix == "unset CUDA_VISIBLE_DEVICES"


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(command: list[str], **_: Any) -> Any:
        table = "| NVIDIA-SMI 570.1   Driver Version: 570.1   CUDA Version: 12.8  |"
        said = "NVIDIA H100\n" if len(command) > 1 else table
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", answer)
    assert doctor.nvidia_smi() == (["NVIDIA H100"], "12.8")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.nvidia_smi() == ([], None)


def test_a_package_that_is_old_or_missing(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def other(name: str) -> str:
        if name == "safetensors":
            return "0.1"
        if name == "tokenizers":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    said = "\n".join(lines(list(doctor.packages(tiny_config()))))
    assert "safetensors is 0.1; requires >=0.5" in said
    assert 'pip install "safetensors>=0.5"' in said
    assert "tokenizers is missing" in said
    assert "torch" not in said


def test_a_disk_that_is_full_slow_or_not_ours(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")

    def found(free: float, speed: Any) -> list[str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(free)))
        monkeypatch.setattr(doctor, "write_speed", speed)
        return [finding.verdict for finding in doctor.disk(tiny_config())]

    def denied(_: Path) -> float:
        raise PermissionError(13, "Permission denied")

    assert found(90e9, lambda _: 1e9) == ["pass", "pass"]
    assert found(3e9, lambda _: 1e6) == ["warn", "warn"]
    assert found(5e8, denied) == ["fail", "fail"]


def test_precision_that_the_machine_does_not_have(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(devices, "why_not_compile", lambda device: "no compiler")
    found = list(doctor.precision(tiny_config("training.mixed_precision=bf16")))
    assert [f.verdict for f in found] == ["warn", "warn"]
    assert found[0].fix == "set training.mixed_precision=auto"
    assert "no compiler" in found[1].seen
    monkeypatch.setattr(devices, "multiplies_in_hardware", lambda dtype, device: False)
    (first, _) = doctor.precision(tiny_config("training.mixed_precision=fp16"))
    assert first.verdict == "warn"


# Compiled code


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "po").mkdir(parents=True)
    return tmp_path / "cache"


def test_the_cache_of_compiled_code_is_looked_at(cache: Path, tiny_config: Build) -> None:
    (cache / "po" / "whole.so").write_bytes(b"x" * 3 * 2**20)
    (cache / "po" / "cut.so").write_bytes(b"")
    os.utime(cache / "po" / "cut.so", (1, 1))
    found, compiler = doctor.compiled(tiny_config())
    assert found.verdict == "pass"
    assert found.seen.startswith(f"torch's compiled code is in {cache}: 3 MiB in 1 file, ")
    assert "1 damaged file of a killed compiler removed" in found.seen
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["whole.so"]
    assert compiler.verdict == "pass"
    assert compiler.seen.endswith("compiles, and the result loads")


def test_a_cache_that_is_not_there_yet_is_none_to_worry_about(
    cache: Path, tiny_config: Build
) -> None:
    shutil.rmtree(cache)
    found, _ = doctor.compiled(tiny_config())
    assert found.verdict == "pass"
    assert "0 MiB in 0 files" in found.seen


def test_a_cache_that_cannot_be_written_to(
    cache: Path, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(compiled_code.tempfile, "TemporaryFile", denied)
    (found,) = doctor.compiled(tiny_config())
    assert found.verdict == "warn"
    assert "cannot be written to: Permission denied" in found.seen
    assert "TORCHINDUCTOR_CACHE_DIR" in (found.fix or "")


def test_a_cache_that_cannot_be_made(
    tmp_path: Path, tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (found,) = doctor.compiled(tiny_config())
    assert found.verdict == "warn"
    assert f"{tmp_path / 'file' / 'cache'}, which cannot be written to: Not a dir" in found.seen


@pytest.mark.skipif(os.name == "nt", reason="the compiler is no script there")
def test_a_compiler_that_does_not_work_is_seen_whatever_the_cache_holds(
    cache: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho cannot find cc1plus >&2; exit 1\n", "utf-8")
    broken.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: str(broken))
        assert compiled_code.why_no_compiler(cache) == (str(broken), "cannot find cc1plus")
        patch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: str(tmp_path / "no"))
        assert "No such file" in (compiled_code.why_no_compiler(cache)[1] or "")
    assert not list(cache.rglob("program*"))


def test_the_hub_that_does_not_answer(tiny_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    config = tiny_config("vae.pretrained_model_name=someone/autoencoder")
    (found,) = doctor.pretrained(config)
    assert found.verdict == "fail"
    assert (
        "someone/autoencoder will be downloaded; http://127.0.0.1:9 does not answer" in found.seen
    )
    assert "HF_ENDPOINT=https://hf-mirror.com" in (found.fix or "")
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_local_folder_needs_no_hub(tiny_config: Build, tmp_path: Path) -> None:
    (found,) = doctor.pretrained(tiny_config(f"vae.pretrained_model_name='{tmp_path}'"))
    assert found.verdict == "pass"


def test_a_check_that_fails_hides_no_other(
    tiny_config: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Config) -> Any:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.python))
    first, *others = examine(tiny_config())
    assert (first.name, first.verdict) == ("broken", "warn")
    assert "no such thing" in first.seen
    assert named(others, "python")
