"""Write a checkpoint atomically: to a temporary folder, synced, with checksums, then renamed.

The order relies only on what every file system guarantees (Pillai et al. 2014, "All File Systems
Are Not Created Equal"): first the data, then the manifest with sizes and checksums, then the name,
each synced before the next. Whenever the power fails, a folder with a checkpoint's name is
complete, or there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from limner.errors import LimnerError
from limner.files.atomic import doomed, recover_in, remove, replacing, sync
from limner.files.folder_lock import is_lock
from limner.files.small_files import read_json
from limner.files.system_names import is_left_by_itself
from limner.messages import shorten

MANIFEST = "manifest.json"
"""Written last: {"files": {name: {"bytes": ..., "sha256": ...}}}."""
NAME = re.compile(r"checkpoint-(\d+)")
EDITABLE = "config.yaml"
"""The file that may be edited in a finished checkpoint; it is validated when it is read."""


@contextlib.contextmanager
def written_whole(
    folder: Path,
    sealed: bool = True,
    needed: int | None = None,
    check: Callable[[Path], object] | None = None,
) -> Iterator[Path]:
    """Context manager with a staging folder, which becomes `folder` (synced and verified) on
    success.

    An existing folder is replaced only at the end, and is restored if that fails.

    Args:
        sealed: whether to write a manifest of checksums, as checkpoints have.
        needed: bytes that it will take, if known.
        check: raises LimnerError if the existing folder must not be replaced.

    Raises:
        LimnerError: see `replacing`.
        OSError: from the block, or because the data on disk differ from what was written; DiskFull
            if there was no room.
    """
    with replacing(folder, folder=True, needed=needed, check=check) as staging:
        yield staging
        if sealed:
            seal(staging)


def seal(staging: Path) -> None:
    """Sync every file, read it back, and write the manifest with checksums."""
    files = {}
    for path in sorted(staging.rglob("*")):
        sync(path)
        if path.is_dir():
            continue
        if not _is_complete(path):
            raise OSError(0, "was not written completely (a short write; is the disk full?)", path)
        name = path.relative_to(staging).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    text = json.dumps({"files": files}, indent=1)
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    if (staging / MANIFEST).read_text(encoding="utf-8") != text:
        raise OSError(0, "was not written completely (is the disk full?)", staging / MANIFEST)
    sync(staging / MANIFEST)
    sync(staging)


def _is_complete(path: Path) -> bool:
    """Whether a file ends where its format says: a checksum alone would not notice a truncated
    one."""
    try:
        if path.suffix == ".pt":
            return zipfile.is_zipfile(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return True
    except SafetensorError:
        return False
    return path.stat().st_size > 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, names: tuple[str, ...] | None = None) -> str | None:
    """Describe the damage of a checkpoint folder by its manifest; None if intact.

    Args:
        names: files whose checksums are compared; None: all. Of the others, only the sizes are.
    """
    try:
        files = read_json(folder / MANIFEST)["files"]
        listed = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing; it was never finished, or not copied completely"
    except LimnerError as error:
        return f"{MANIFEST} is damaged: {error}"
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        return f"{MANIFEST} is damaged ({error or type(error).__name__})"
    for name, (size, sha256) in listed.items():
        parts = name.split("/")  # at most one subfolder, never outside
        plain = name.isprintable() and not {"\\", ":"} & set(name)
        if not plain or len(parts) > 2 or {"", ".", ".."} & set(parts):
            return f"{MANIFEST} names {shorten(name)}, which is not a file of a checkpoint"
        path = folder / name
        if name == EDITABLE and path.is_file():
            continue
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if (names is None or name in names) and _sha256(path) != sha256:
                return f"{name} is not what was written (checksum mismatch)"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def own_files(folder: Path) -> list[str]:
    """Names of files in a checkpoint that users added, sorted.

    Raises:
        OSError: the manifest, which lists the other files, cannot be read.
    """
    try:
        listed = {str(name) for name in read_json(folder / MANIFEST)["files"]} | {MANIFEST}
    except (LimnerError, ValueError, TypeError, KeyError):
        raise OSError(0, f"its {MANIFEST} is damaged, so its other files are unknown") from None
    return sorted(
        name
        for name, path in _files(folder).items()
        if not (name in listed or is_left_by_itself(path.name) or is_lock(path.name))
    )


def _files(folder: Path) -> dict[str, Path]:
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path for path in found}


def remove_written(folder: Path) -> list[str]:
    """Delete a checkpoint, but keep files that users added to it.

    Returns:
        The names of what stayed, sorted.

    Raises:
        OSError: it could not be deleted.
    """
    theirs = own_files(folder)
    if not theirs:
        remove(folder)
        return []
    # Rename first: a kill during slow deletions would leave an incomplete checkpoint.
    with doomed(folder) as place:
        place.mkdir()
        ours = _files(folder).keys() - set(theirs)
        for number, name in enumerate(sorted(ours, reverse=True)):
            os.replace(folder / name, place / str(number))
        shutil.rmtree(place, ignore_errors=True)
    for inner in [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]:
        with contextlib.suppress(OSError):
            inner.rmdir()  # only if it is empty
    return theirs


def finish_interrupted(run_folder: Path) -> None:
    """Clean up after a kill during saving, replacing, or pruning."""
    for folder in (run_folder, run_folder / "previews"):
        recover_in(folder)
    for path in list(run_folder.iterdir()) if run_folder.is_dir() else ():
        # Names of earlier versions only. Others, such as .git.old, are not ours.
        name, dot, state = path.name.removeprefix(".").rpartition(".")
        if not (path.name.startswith(".") and dot and path.is_dir() and NAME.fullmatch(name)):
            continue
        if state == "old" and not path.with_name(name).exists() and damage(path) is None:
            os.replace(path, path.with_name(name))
        elif state in ("old", "writing", "deleted"):
            shutil.rmtree(path, ignore_errors=True)


def replaceable(folder: Path, known: frozenset[str]) -> None:
    """Raises LimnerError if `folder` exists and is not a checkpoint."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    if names is None or not ("training_state.json" in names or names <= known):
        raise LimnerError(
            f"{folder} already exists and is not a checkpoint, so it is not overwritten; use a new "
            "folder"
        )
