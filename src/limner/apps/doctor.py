"""`limner doctor`: what is wrong with this machine, and the exact command that mends it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from limner.config import Config
from limner.config.notes import notes
from limner.errors import LimnerError
from limner.messages import plural
from limner.redaction import redact_urls

Verdict = Literal["pass", "warn", "fail"]
GIB = 2**30
LOOKED_AT = 64
"""Pictures that are decoded, of however many there are."""
LARGE_CACHE = 20 * GIB
"""Bytes of compiled code from which it is worth a word."""
GET_A_COMPILER = {
    "Windows": "install Visual Studio's C++ build tools",
    "Darwin": "xcode-select --install",
}
TORCH_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    seen: str
    fix: str | None = None
    """A command, or what to do where no command can."""


def examine(config: Config) -> list[Finding]:
    """Look at everything that a run of this configuration needs. Never raises."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check(config)
        except Exception as error:  # a check that fails is news too, and hides no other
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            findings.append(Finding(check.__name__, "warn", f"could not be checked: {reason}"))
    return [replace(finding, seen=redact_urls(finding.seen)) for finding in findings]


def lines(findings: list[Finding]) -> Iterator[str]:
    """For people."""
    for f in findings:
        yield f"{f.verdict:4}  {f.name:11}  {f.seen}"
        if f.fix and f.verdict != "pass":
            yield f"{'':19}-> {f.fix}"
    worst = [f.verdict for f in findings]
    fails, warns = worst.count("fail"), worst.count("warn")
    passed = len(findings) - fails - warns
    yield f"{passed} passed, {warns} {plural(warns, 'warning')}, {fails} to fix"


# The machine


def python(config: Config) -> Iterator[Finding]:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        "pass" if good else "fail",
        version,
        "python3.11 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt",
    )
    if sys.prefix == sys.base_prefix:
        yield Finding(
            "python",
            "warn",
            "no virtual environment; Limner shares its packages with other projects",
            f"{sys.executable} -m venv .venv",
        )


def packages(config: Config) -> Iterator[Finding]:
    """Every requirement of Limner against what is installed."""
    from packaging.requirements import Requirement

    wrong = []
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("limner") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "fail", "Limner itself is not installed", "pip install -e .")
        return
    extra = "pretrained" if _uses_pretrained(config) else ""
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append((f"{requirement.name} is missing", requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((f"{requirement.name} is {version}", requirement))
    if not wrong:
        yield Finding("packages", "pass", "all requirements, in supported versions")
    for problem, requirement in wrong:
        said = f'"{requirement.name}{requirement.specifier}"'
        yield Finding(
            "packages",
            "fail",
            f"{problem}; requires {requirement.specifier or 'any version'}",
            f"{sys.executable} -m pip install {said}",
        )


def device(config: Config) -> Iterator[Finding]:
    """Does torch see the GPU that the machine has?"""
    import torch

    gpus, driver_cuda = nvidia_smi()
    yield from gpu_findings(
        gpus,
        driver_cuda,
        torch.version.cuda,
        torch.cuda.is_available(),
        torch.__version__,
        config.training.device,
    )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield Finding(
            "gpu memory",
            "pass" if free > 0.8 * total else "warn",
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB free on {torch.cuda.get_device_name()}",
            "nvidia-smi   # shows what else uses it",
        )
    elif torch.backends.mps.is_available():
        yield Finding("device", "pass", "Apple's GPU (mps)")
    elif not gpus:
        threads = torch.get_num_threads()
        yield Finding(
            "device", "pass", f"no GPU; the CPU can train small models ({threads} threads)"
        )


def nvidia_smi() -> tuple[list[str], str | None]:
    """Names of NVIDIA's GPUs by the driver, and the newest CUDA that the driver can run."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], None
    ask = [program, "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    table = subprocess.run([program], capture_output=True, text=True, timeout=20)
    found = re.search(r"CUDA Version:\s*([\d.]+)", table.stdout)
    gpus = [line.strip() for line in names.stdout.splitlines() if line.strip()]
    return (gpus if names.returncode == 0 else []), found[1] if found else None


def gpu_findings(
    gpus: list[str],
    driver_cuda: str | None,
    torch_cuda: str | None,
    torch_sees: bool,
    torch_version: str,
    wanted: str,
) -> Iterator[Finding]:
    """What the driver's and torch's versions mean together.

    Args:
        gpus: that the driver lists.
        driver_cuda: newest CUDA version of the driver, torch_cuda: that torch is built for.
        torch_sees: whether torch can use one.
        wanted: `training.device`.
    """
    if wanted == "cuda" and not gpus and not torch_sees:
        yield Finding(
            "device",
            "fail",
            "training.device is cuda, but neither the driver nor torch finds an NVIDIA GPU",
            "set training.device=auto, or install the driver and see that `nvidia-smi` lists it",
        )
    if not gpus:
        return
    if torch_sees:
        yield Finding("device", "pass", f"{', '.join(gpus)}; torch is built for CUDA {torch_cuda}")
    elif torch_cuda is None:
        tag = _index_for(driver_cuda)
        yield Finding(
            "device",
            "fail",
            f"the machine has {gpus[0]}, but this torch ({torch_version}) is built without CUDA",
            f"{sys.executable} -m pip install --force-reinstall torch "
            f"--index-url {TORCH_INDEX}/{tag}",
        )
    elif driver_cuda and _numbers(driver_cuda) < _numbers(torch_cuda):
        tag = _index_for(driver_cuda)
        yield Finding(
            "device",
            "fail",
            f"the driver of {gpus[0]} supports CUDA up to {driver_cuda}, but torch is built for "
            f"{torch_cuda}",
            "update the NVIDIA driver, or "
            f"{sys.executable} -m pip install --force-reinstall torch "
            f"--index-url {TORCH_INDEX}/{tag}",
        )
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield Finding(
            "device",
            "fail",
            f"the driver lists {gpus[0]}, but torch (CUDA {torch_cuda}) finds none"
            + (f"; CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else ""),
            "unset CUDA_VISIBLE_DEVICES"
            if hidden is not None
            else "restart the machine; after an update, the versions of driver and kernel module "
            "may differ",
        )


def _index_for(driver_cuda: str | None) -> str:
    """The newest of PyTorch's package indices that the driver can run."""
    known = ((13, 0), (12, 8), (12, 6))
    can = _numbers(driver_cuda or "12.6")
    major, minor = next((v for v in known if v <= can), known[-1])
    return f"cu{major}{minor}"


def _numbers(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def precision(config: Config) -> Iterator[Finding]:
    import torch

    from limner.device import choose_device, fast_bfloat16, precision_note, why_not_compile

    try:
        found = choose_device(config.training.device)
    except LimnerError:
        found = torch.device("cpu")
    wanted = config.training.mixed_precision
    if note := precision_note(wanted, found, "training.mixed_precision"):
        yield Finding("precision", "warn", note, "set training.mixed_precision=auto")
    else:
        has_it = fast_bfloat16(found)
        yield Finding("precision", "pass", "hardware support for bf16" if has_it else "float32")
    reason = why_not_compile(found)
    yield Finding(
        "compile",
        "warn" if reason else "pass",
        f"torch.compile does not work, training is slower: {reason}" if reason else "works",
        GET_A_COMPILER.get(platform.system(), "sudo apt install g++   # a C++ compiler"),
    )


def compiled(config: Config) -> Iterator[Finding]:
    """Where torch keeps what it has compiled, and what compiles it."""
    from limner.apps.compiled_code import look_at_cache, why_no_compiler

    found = look_at_cache()
    if found is None:
        return
    where = f"torch's compiled code is in {found.place}"
    elsewhere = "set the environment variable TORCHINDUCTOR_CACHE_DIR to a folder of yours"
    if found.closed:
        yield Finding(
            "compiled", "warn", f"{where}, which cannot be written to: {found.closed}", elsewhere
        )
        return
    damaged = (
        f"; {found.removed} damaged {plural(found.removed, 'file')} of a killed compiler removed"
        if found.removed
        else ""
    )
    yield Finding(
        "compiled",
        "pass" if found.free > GIB / 2 and found.bytes < LARGE_CACHE else "warn",
        f"{where}: {found.bytes / 2**20:,.0f} MiB in {found.files:,} "
        f"{plural(found.files, 'file')}, {found.free / GIB:.1f} GiB free{damaged}",
        f"delete it while nothing trains (it is made again), or {elsewhere}",
    )
    name, reason = why_no_compiler(found.place)
    yield Finding(
        "compiled",
        "warn" if reason else "pass",
        f"{name} does not work: {reason}" if reason else f"{name} compiles, and the result loads",
        GET_A_COMPILER.get(platform.system(), "sudo apt install g++   # a C++ compiler")
        + (f"; on a disk that runs no programs: {elsewhere}" if reason else ""),
    )


def memory(config: Config) -> Iterator[Finding]:
    from limner.memory import free_of_machine, whole_memory

    free, whole = free_of_machine(), whole_memory()
    yield Finding(
        "memory",
        "pass" if free > 3 * GIB else "warn",
        f"{free / GIB:.1f} of {whole / GIB:.1f} GiB free",
        "close other programs; a smaller training.batch_size or training.num_workers=0 needs less",
    )
    shared = Path("/dev/shm")
    if config.training.num_workers and shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield Finding(
            "memory",
            "pass" if free > GIB / 2 else "warn",
            f"{free / GIB:.1f} GiB of shared memory for data loading workers",
            "docker run --shm-size=8g ...   (or training.num_workers=0)",
        )


def disk(config: Config) -> Iterator[Finding]:
    """Room and speed where checkpoints go."""
    folder = Path(config.training.output_dir).absolute()
    where = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(where).free
    yield Finding(
        "disk",
        "pass" if free > 5 * GIB else "warn" if free > GIB else "fail",
        f"{free / GIB:.1f} GiB free at {where}",
        "free some disk space, or set training.output_dir to a larger disk; "
        "training.checkpoints_total_limit=1 keeps fewer checkpoints",
    )
    try:
        rate = write_speed(where)
    except OSError as error:
        yield Finding(
            "disk",
            "fail",
            f"{where} cannot be written to: {error.strerror or error}",
            f"set training.output_dir to one of your folders (or: sudo chown $USER {where})",
        )
        return
    yield Finding(
        "disk",
        "pass" if rate > 50e6 else "warn",
        f"{rate / 1e6:,.0f} MB/s to the disk itself (synced)",
        "use a larger training.save_steps to wait less for it",
    )


def write_speed(folder: Path, size: int = 2**25) -> float:
    """Bytes per second, synced to the disk."""
    data = os.urandom(size)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return size / (time.perf_counter() - began)


# The run


def configuration(config: Config) -> Iterator[Finding]:
    """What a run of it would do differently than its keys say."""
    for note in notes(config):
        yield Finding("config", "warn", note)


def data(config: Config) -> Iterator[Finding]:
    from limner.data.open import open_image_dataset
    from limner.data.order import evenly_spaced
    from limner.data.verify import can_be_checked, undecodable

    name = config.data.dataset_name
    if name and "/" in name:  # looking at it would download it
        yield hub(f"data.dataset_name: {name} is read from the Hub")
        return
    try:
        found = open_image_dataset(config)
    except (LimnerError, ImportError) as error:
        first, *more = str(error).splitlines()
        default = config.data == type(config.data)()  # nobody has named any data yet
        how = "limner doctor CONFIG checks your data; limner demo needs none"
        yield Finding("data", "warn" if default else "fail", first, " ".join(more) or how)
        return
    refused, images = len(found.refused), len(found.rows)
    yield Finding(
        "data",
        "warn" if refused else "pass",
        f"{images:,} pictures with captions in {found.name}"
        + (f", {refused:,} {plural(refused, 'row')} cannot be used" if refused else ""),
        f"first: {found.refused[0].key}: {found.refused[0].reason}" if refused else None,
    )
    if can_be_checked(found):
        sample = [found.rows[i] for i in evenly_spaced(images, LOOKED_AT)]
        bad = undecodable(found, sample)
        several = "all of them" if images == len(sample) else f"a sample of {len(sample)}"
        where = shlex.quote(str(config.data.dataset_path or "CONFIG"))
        yield Finding(
            "data",
            "fail" if len(bad) == len(sample) else "warn" if bad else "pass",
            f"{len(bad)} of {several.removeprefix('all of ')} cannot be decoded, first: "
            f"{bad[0].key}: {bad[0].reason}"
            if bad
            else f"{several} can be decoded",
            f"limner check-data {where}   (checks all of them)",
        )


def pretrained(config: Config) -> Iterator[Finding]:
    """The Hub, where the configuration names something on it that is not here yet."""
    from limner.pretrained.hub import find_folder

    for key, name in (
        ("vae.pretrained_model_name", config.vae.pretrained_model_name),
        ("text_encoder.pretrained_model_name", config.text_encoder.pretrained_model_name),
    ):
        if name is None:
            continue
        if Path(name).is_dir():
            yield Finding("pretrained", "pass", f"{key}: {name} is a local folder")
            continue
        offline = os.environ.get("HF_HUB_OFFLINE")
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            here = _is_here(find_folder, name, key)
        finally:
            os.environ.pop("HF_HUB_OFFLINE")
            if offline is not None:
                os.environ["HF_HUB_OFFLINE"] = offline
        if here:
            yield Finding("pretrained", "pass", f"{key}: {name} has been downloaded")
        else:
            yield hub(f"{key}: {name} will be downloaded")


def _is_here(find: Callable[..., Path], name: str, key: str) -> bool:
    try:
        find(name, key)
    except Exception:
        return False
    return True


def hub(why: str, timeout: float = 5.0) -> Finding:
    """Whether the Hub answers."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            return Finding("hub", "pass", f"{why}; {address} answers ({answer.status})")
    except urllib.error.HTTPError as error:  # an answer too
        return Finding("hub", "pass", f"{why}; {address} answers ({error.code})")
    except OSError as error:
        return Finding(
            "hub",
            "fail",
            f"{why}; {address} does not answer ({getattr(error, 'reason', error)})",
            "export HF_ENDPOINT=https://hf-mirror.com   (Windows: set ...), or use local folders",
        )


def _uses_pretrained(config: Config) -> bool:
    return bool(config.vae.pretrained_model_name or config.text_encoder.pretrained_model_name)


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    python,
    packages,
    device,
    compiled,  # before what compiles, which removes what is damaged without a word
    precision,
    memory,
    disk,
    configuration,
    data,
    pretrained,
)
