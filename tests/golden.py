"""What a change of the code must not change, unless it is meant to: `make golden`.

    python tests/golden.py keep build/golden/before          # of this checkout
    python tests/golden.py compare build/golden/before build/golden/after

Kept are the log of configs/tiny.yaml (all but times and speeds, losses to the bit), the pixels of
six prompts that its model draws, the help of every command, and the generated reference. Numbers
depend on the machine and on torch, so both sides are made on one machine.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PROMPTS = ("a red circle", "a blue square", "two green stars", "un cerchio", "苹果", "")
TIMED = ("seconds", "images_per_second", "time", "date")


def limner(*words: str, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "limner", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def commands() -> list[str]:
    sys.path.insert(0, str(ROOT / "src"))
    from limner.cli import build_parser

    (choices,) = [a.choices for a in build_parser()._actions if a.choices is not None]
    return list(choices)


def keep(folder: Path) -> None:
    """Write all of it into a folder, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "help").mkdir(parents=True)
    for command in commands():
        (folder / "help" / f"{command}.txt").write_text(limner(command, "--help"), "utf-8")
    shutil.copytree(ROOT / "docs" / "reference", folder / "reference")
    run = folder.resolve() / "run"
    how = ["training.max_steps=20", "training.num_workers=0", "training.compile_model=false"]
    limner("train", "--config", "configs/tiny.yaml", f"training.output_dir={run}", *how)
    kept = []
    for line in (run / "log.jsonl").read_text("utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] not in ("speed", "event"):
            kept.append({key: value for key, value in event.items() if key not in TIMED})
    (folder / "log.json").write_text(json.dumps(kept, indent=1), "utf-8")
    hashes = {}
    for seed, prompt in enumerate(PROMPTS):
        path = folder / "drawn.png"
        limner("generate", str(run), prompt, "--seed", str(seed), "--output", str(path.resolve()))
        with Image.open(path) as image:
            hashes[prompt] = hashlib.sha256(image.tobytes()).hexdigest()
    (folder / "drawn.json").write_text(json.dumps(hashes, indent=1, ensure_ascii=False), "utf-8")
    path.unlink()
    shutil.rmtree(run)


def compare(before: Path, after: Path) -> int:
    """Print what differs; the exit code."""
    names = {p.relative_to(f) for f in (before, after) for p in f.rglob("*") if p.is_file()}
    differing = 0
    for name in sorted(names):
        old, new = (
            (f / name).read_text("utf-8").splitlines() if (f / name).is_file() else []
            for f in (before, after)
        )
        if lines := list(difflib.unified_diff(old, new, str(name), str(name), lineterm="", n=0)):
            differing += 1
            print("\n".join(lines[:40]))
            if len(lines) > 40:
                print(f"... {len(lines) - 40} more lines")
    print(f"{differing} of {len(names)} differ")
    return int(differing > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("keep", "compare"))
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    if options.what == "keep":
        keep(*options.folders)
        return 0
    return compare(*options.folders)


if __name__ == "__main__":
    sys.exit(main())
