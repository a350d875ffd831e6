"""Never write into the user's data folder: pictures there would be trained on at the next start."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from limner.config import Config
from limner.data.dataset import ImageDataset
from limner.errors import LimnerError


def data_folder(config: Config) -> Path | None:
    """The folder in which data are looked for. None: they are built in, from far away, or files
    that are named one by one (a table, a pattern of shards), beside which others do no harm."""
    name = (config.data.dataset_name or "").lower()
    if name in ("emoji", "shapes") or "/" in name:
        return None
    folder = Path(config.data.dataset_path).expanduser()
    return folder if folder.is_dir() else None


def keep_out_of_the_data(
    output: Path, config: Config, key: str, model: str | Path | None = None
) -> None:
    """Raises LimnerError if `output` is the folder of the data or inside it, by whatever name.

    Args:
        output: a folder or file to write, which need not be there.
        key: what named it, such as "--output".
        model: whose configuration it is, if that of a checkpoint or run, which may have begun in
            another folder than one is in now.
    """
    if (folder := data_folder(config)) is not None:
        keep_out_of(output, folder, key)
    began = None if model is None else _began_in(model, config.training.output_dir)
    if began is not None:
        there = os.path.join(began, os.path.expanduser(config.data.dataset_path))
        data = config.data.model_copy(update={"dataset_path": there})
        if (folder := data_folder(config.model_copy(update={"data": data}))) is not None:
            keep_out_of(output, folder, key)


def _began_in(model: str | Path, output_dir: str) -> Path | None:
    """The folder from which a run's relative paths are seen; None: its output_dir does not say."""
    said = Path(os.path.normpath(output_dir))
    if said.is_absolute() or not said.parts or ".." in said.parts:
        return None
    for path in (os.path.abspath, os.path.realpath):
        place = Path(path(os.path.expanduser(model)))
        for run in (place, *list(place.parents)[:2]):  # or a checkpoint in it, or a file of that
            if run.parts[-len(said.parts) :] == said.parts:
                return run.parents[len(said.parts) - 1]
    return None


def keep_out_of(output: Path, folder: Path, key: str) -> None:
    """The same of a folder of data. Raises LimnerError."""
    there, data = _real(output), _real(folder)
    if not there.is_relative_to(data):
        return
    name = there.name if there != data else "output"
    raise LimnerError(
        f"{key}: {output} is inside the data folder ({folder}), so its files would be read as data "
        "the next time. Use a folder outside of it, such as "
        f"{_shown(data.with_name(f'{data.name}-{name}'))}"
    )


def cache_may_begin(config: Config) -> bool:
    """Whether `cache.folder` is there (it holds no pictures, and goes on), or would not begin
    inside the data."""
    cache, folder = Path(config.cache.folder), data_folder(config)
    return cache.exists() or folder is None or not _real(cache).is_relative_to(_real(folder))


def check_new_cache(config: Config) -> None:
    """Raises LimnerError where it would."""
    if not cache_may_begin(config):
        keep_out_of_the_data(Path(config.cache.folder), config, "cache.folder")


def keep_apart(output: Path, config: Config, key: str) -> None:
    """The same, and raises LimnerError also if the data are inside `output`."""
    keep_out_of_the_data(output, config, key)
    folder = data_folder(config)
    if folder is not None and _real(folder).is_relative_to(_real(output)):
        raise LimnerError(
            f"{key}: {output} contains the data ({folder}), so its files would be mixed with them. "
            f"Use a separate folder, such as {_shown(_real(output) / 'run')}"
        )


def keep_out_of_links(output: Path, dataset: ImageDataset, key: str) -> None:
    """Raises LimnerError if a link in the data's folder leads to where `output` is."""
    folder = getattr(dataset, "folder", None)
    if not isinstance(folder, Path):
        return
    within = {posixpath.dirname(row.key) for row in dataset.rows}
    every = {parent for path in within for parent in (Path(path), *Path(path).parents)}
    for path in sorted(every):
        if (folder / path).is_symlink():
            keep_out_of(output, folder / path, key)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path.expanduser()))


def _shown(path: Path) -> str:
    """As it may be typed: from here if that is shorter."""
    try:
        return min(Path(os.path.relpath(path)).as_posix(), path.as_posix(), key=len)
    except ValueError:  # another drive
        return path.as_posix()
