"""Data sets read by the package `datasets`: from the Hub, saved to disk, or in a local folder.

Code from the Hub is never run: data sets that need it (`trust_remote_code`) are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limner.config import Config
from limner.data.formats.arrow import DatasetImages
from limner.data.formats.dataset_files import (
    check_data_files,
    check_described,
    check_saved,
    folder_root,
)
from limner.data.formats.options import ReadOptions
from limner.errors import LimnerError

if TYPE_CHECKING:
    from datasets import Dataset

NEEDS = 'run: pip install "limner[data]" (or pip install datasets)'


def open_datasets(config: Config) -> DatasetImages:
    """What `data.dataset_name` (a Hub id) or `data.dataset_path` names. Raises LimnerError."""
    data = config.data
    name = data.dataset_name if "/" in (data.dataset_name or "") else None
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise LimnerError(f"{name or data.dataset_path}: to read it, {NEEDS}") from None
    options = ReadOptions.of(config)
    if name is not None:
        data = _from_hub(config, name)
        folder, allowed = _downloaded_to(data, name)
        return DatasetImages(
            data, name, options.columns, folder, allowed=[*allowed, *options.allowed]
        )
    path = Path(data.dataset_path).expanduser().absolute()
    if not path.exists():
        raise LimnerError(f"data.dataset_path: there is no {path}")
    folder = path if path.is_dir() else path.parent
    allowed = [*_blobs(folder), *options.allowed]
    found = _from_disk(config, path, [folder_root(place) for place in (folder, *allowed)])
    return DatasetImages(found, str(data.dataset_path), options.columns, folder, allowed=allowed)


def _blobs(folder: Path) -> list[Path]:
    """Of a snapshot in the Hub's cache, which consists of links: where these lead."""
    if "snapshots" not in folder.parts:
        return []
    return [above / "blobs" for above in folder.parents if (above / "blobs").is_dir()][:1]


def _downloaded_to(data: Dataset, name: str) -> tuple[Path, list[Path]]:
    """Where the files of a set from the Hub are: its part of the cache; and, of a set whose
    pictures were in archives, where the package datasets has unpacked them. (Tables that name such
    places themselves are not believed: only what builds tables from files does so.)"""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    if data.info.builder_name != "imagefolder":
        return folder, []
    return folder, [Path(datasets.config.EXTRACTED_DATASETS_PATH)]


def _from_hub(config: Config, name: str) -> Dataset:
    import datasets

    data = config.data
    mirror = "if the Hub cannot be reached, set HF_ENDPOINT=https://hf-mirror.com to use a mirror"
    try:
        # The package itself refuses a README that names files outside of its repository.
        return datasets.load_dataset(name, data.dataset_config, split=data.dataset_split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise LimnerError(
            f"data.dataset_name: {name} is not on the Hub, or is private or gated: {_said(error)}. "
            "Check its name; for a private one, log in with `hf auth login`"
        ) from None
    except (ValueError, RuntimeError) as error:  # of its configurations, of its splits, of scripts
        raise LimnerError(_asked_wrongly(f"data.dataset_name: {name}", config, error)) from None
    except OSError as error:
        raise LimnerError(
            f"data.dataset_name: {name} could not be downloaded ({_said(error)}). Check the "
            f"connection and the disk; {mirror}"
        ) from None
    except Exception as error:  # of the several libraries that download
        kind = type(error).__name__
        raise LimnerError(
            f"data.dataset_name: {name} could not be read ({kind}: {_said(error)}); {mirror}"
        ) from None


def _from_disk(config: Config, path: Path, roots: Sequence[str]) -> Dataset:
    """
    Args:
        roots: of the files that may be read for it; see `check_data_files`.
    """
    import datasets

    data = config.data
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            check_saved(path)
            found = datasets.load_from_disk(str(path))
            if isinstance(found, datasets.DatasetDict):
                if data.dataset_split not in found:
                    raise LimnerError(
                        f"data.dataset_split: {path} has no {data.dataset_split!r}; "
                        f"its splits are {', '.join(map(str, found))}"
                    )
                return found[data.dataset_split]
            return found
        kind, files = str(path), None
        if path.is_file():
            files, kind = str(path), path.suffix.lower().lstrip(".")
            kind = {"jsonl": "json", "tsv": "csv"}.get(kind, kind)
        check_described(path)
        builder = datasets.load_dataset_builder(kind, data.dataset_config, data_files=files)
        check_data_files(builder.config.data_files, str(path), roots)
        builder.download_and_prepare()
        return builder.as_dataset(split=data.dataset_split)
    except LimnerError:
        raise
    except Exception as error:  # of pyarrow, of the file system, of what it made of the folder
        raise LimnerError(_asked_wrongly(f"data.dataset_path: {path}", config, error)) from None


def _asked_wrongly(what: str, config: Config, error: Exception) -> str:
    reason = _said(error)
    return (
        f"{what} cannot be read by the package datasets as split {config.data.dataset_split!r} of "
        f"configuration {config.data.dataset_config!r}: {reason} (set data.dataset_split or "
        "data.dataset_config to choose another)"
    )


def _said(error: Exception) -> str:
    """In one line, and not longer than people read: some list all file endings there are."""
    return " ".join(str(error).split())[:400] or type(error).__name__
