"""Files from a stranger run nothing: every file that is read, replaced by a payload that would."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limner.checkpoint import manifest
from limner.checkpoint.locate import AVERAGED, FILES, TOKENIZER, checkpoints
from limner.cli import main
from limner.config import Config
from limner.data import verify
from limner.data.precomputed.fill import fill
from limner.data.precomputed.store import Store
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints
from limner.training.trainer import Trainer


class Payload:
    """A pickle of this creates a file when it is loaded without care."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "victim"


def payloads(victim: Path, folder: Path) -> list[bytes]:
    """The same as a pickle, as torch writes it, and as NumPy does."""
    folder.mkdir(exist_ok=True)
    torch.save(Payload(victim), folder / "torch")
    np.save(folder / "numpy.npy", np.array([Payload(victim)], dtype=object), allow_pickle=True)
    files = [pickle.dumps(Payload(victim)), (folder / "torch").read_bytes()]
    return [*files, (folder / "numpy.npy").read_bytes()]


def test_the_payloads_would_work(victim: Path, tmp_path: Path) -> None:
    pickle.loads(payloads(victim, tmp_path / "made")[0])
    assert victim.exists()


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("name", [*FILES, AVERAGED, TOKENIZER])
def test_no_file_of_a_checkpoint_runs(
    name: str,
    kind: int,
    victim: Path,
    tmp_path: Path,
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(tiny_config())
    trainer.save_checkpoint(trainer.folder / "checkpoint-1")
    (folder,) = checkpoints(trainer.folder)
    (folder / name).write_bytes(payloads(victim, tmp_path / "made")[kind])
    if name != "manifest.json":  # a stranger can make its checksums fit
        monkeypatch.setattr(manifest, "_is_complete", lambda path: True)
        (folder / "manifest.json").unlink()
        manifest.seal(folder)
    with pytest.raises(
        LimnerError, match=r"manifest|damaged|readable|is not a Limner tokenizer|is not valid UTF-8"
    ):
        Trainer(tiny_config(), resume=folder)
    assert main(["generate", str(folder), "a circle", "--output", str(tmp_path / "x.png")]) == (
        0 if name == "optimizer.pt" or name == "model.pt" else 2
    )
    assert not victim.exists()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_no_file_of_a_cache_runs(kind: int, victim: Path, tmp_path: Path) -> None:
    data = payloads(victim, tmp_path / "made")[kind]
    cache = tmp_path / "cache"
    key: dict[str, str | int | None] = {"made_of": "numbers"}
    store = Store.open(cache, "latents", key)
    ids = np.arange(64, dtype=np.uint8).reshape(4, 16)
    fill(store, ids, lambda places: [torch.ones(1, 3) for _ in places], 4, 4, lambda *_: None)
    files = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) >= 2
    for path in files:
        path.write_bytes(data)
    try:
        Store.open(cache, "latents", key)
    except LimnerError as error:
        refused = str(error)
        assert str(cache) in refused
    for name in ("contents.npy", "checked.npy"):
        (cache / name).write_bytes(data)
    assert len(Fingerprints(cache / "contents.npy").known) == 0
    assert verify._read(cache / "checked.npy") == set()
    assert not victim.exists()
