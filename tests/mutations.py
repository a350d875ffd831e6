"""Whether the tests notice what they are for: the code is broken on purpose, one way at a time.

    python tests/mutations.py                # all: each is to be caught, some minutes
    python tests/mutations.py fsync dropout  # those whose names hold one of these words

Each break is made in a copy of src/, and the tests named beside it must fail there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Break(NamedTuple):
    name: str
    file: str
    code: str
    broken: str
    tests: tuple[str, ...]


BREAKS = (
    Break(
        "a second signal is ignored",
        "training/stopping.py",
        "signal.SIG_IGN if hangs_up else signal.SIG_DFL",
        "signal.SIG_IGN",
        ("tests/unit/training/test_stopping.py",),
    ),
    Break(
        "fsync removed",
        "files/atomic.py",
        "        os.fsync(descriptor)\n    except OSError",
        "        pass\n    except OSError",
        ("tests/unit/files/test_atomic.py",),
    ),
    Break(
        "one retry of a read instead of two",
        "data/images.py",
        "max(height, width), 2, held)",
        "max(height, width), 1, held)",
        ("tests/faults/test_disk.py",),
    ),
    Break(
        "no waiting for the writing at an out-of-memory save",
        "checkpoint/saver.py",
        "        if copy is None:\n            self.wait()",
        "        if copy is None:\n            pass",
        ("tests/faults/test_memory.py",),
    ),
    Break(
        "rolling back once per run instead of once in 1,000 updates",
        "training/recovery.py",
        " and state.step - state.rolled_back_at < PEACE:",
        ":",
        ("tests/faults/test_numbers.py",),
    ),
    Break(
        "the same pictures again after a roll-back",
        "training/recovery.py",
        "        state.note_roll_back()\n",
        "        state.note_roll_back()\n"
        "        state.images = checkpoint.state.images if checkpoint else 0\n"
        "        self.batches.restart()\n",
        ("tests/faults/test_numbers.py",),
    ),
    Break(
        "no weighting of micro-batch parts",
        "training/train_step.py",
        "self.balance.weights(levels)).sum() / images",
        "self.balance.weights(levels)).mean()",
        ("tests/unit/training/test_train_step.py",),
    ),
    Break(
        "short writes unnoticed",
        "checkpoint/manifest.py",
        "if not _is_complete(path):",
        "if False:",
        ("tests/runs/test_checkpoint.py", "tests/faults/test_disk.py"),
    ),
    Break(
        "no checksum",
        "checkpoint/manifest.py",
        "_sha256(path) != sha256",
        "False",
        ("tests/runs/test_checkpoint.py", "tests/faults/test_disk.py"),
    ),
    Break(
        "pruning in a bad streak",
        "training/trainer.py",
        "(due and not state.skipped_in_a_row)",
        "due",
        ("tests/faults/test_numbers.py",),
    ),
    Break(
        "pictures unchecked",
        "data/open.py",
        "remove_undecodable(",
        "(lambda rows, *_, **__: rows)(",
        ("tests/unit/data/test_datasets.py",),
    ),
    Break(
        "EMA after a skipped update",
        "training/trainer.py",
        "if not updated.skipped:",
        "if True:",
        ("tests/faults/test_numbers.py",),
    ),
    Break(
        "dropout from a running stream",
        "models/dropout.py",
        "if len(seeds) != len(x):",
        "if True:",
        ("tests/faults/test_memory.py",),
    ),
    Break(
        "no copy before the asynchronous write",
        "checkpoint/saver.py",
        "= contents.copied()",
        "= contents",
        (
            "tests/faults/test_disk.py",
            "tests/faults/test_memory.py",
            "tests/runs/test_checkpoint.py",
        ),
    ),
    Break(
        "only two origins refused by play",
        "apps/serving/access.py",
        '    if origin is None:\n        return True\n    scheme, _, place = origin.partition("://")\n'
        '    return scheme in ("http", "https") and place.lower() == host.strip().lower()',
        '    return origin not in ("null", "http://evil.example")',
        ("tests/system/test_play_access.py", "tests/system/test_play.py"),
    ),
    Break(
        "a kept picture written over",
        "apps/play/painter.py",
        'path.open("xb")',
        'path.open("wb")',
        ("tests/system/test_play.py", "tests/system/test_play_access.py"),
    ),
    Break(
        "log lines dropped",
        "training/monitor/run_log.py",
        "self.waiting[path] = lines[-MOST_WAITING:]",
        "self.waiting[path] = []",
        ("tests/faults/test_disk.py",),
    ),
    Break(
        "guidance applied outside its interval",
        "diffusion/guidance.py",
        " and low <= timestep <= high",
        "",
        ("tests/unit/diffusion/test_solvers.py", "tests/unit/diffusion/test_guidance.py"),
    ),
)


def is_caught(broken: Break) -> bool:
    """Whether a named test fails in a copy of the source with that break."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "limner" / broken.file
        text = path.read_text("utf-8")
        if text.count(broken.code) != 1:
            raise SystemExit(f"{broken.name}: its code stands {text.count(broken.code)} times")
        path.write_text(text.replace(broken.code, broken.broken), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n0", "-q", "-x", *broken.tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"{broken.name}: pytest ended with {done.returncode}\n{done.stdout}")
        return done.returncode == 1


def main() -> int:
    words = sys.argv[1:]
    chosen = [b for b in BREAKS if not words or any(word in b.name for word in words)]
    survived = 0
    for broken in chosen:
        caught = is_caught(broken)
        survived += not caught
        print(f"{'caught  ' if caught else 'SURVIVED'}  {broken.name}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
