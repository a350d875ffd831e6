"""Inherit the settings of the model that a run starts from (`training.init_from`).

Only configurations are read here; weights are read by `training/init_from.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.checkpoint.find_model import file_config, find_model
from limner.config.loading import build_config, read_sections
from limner.config.model import ModelConfig, TextEncoderConfig, VaeConfig
from limner.errors import LimnerError
from limner.redaction import is_same_place

if TYPE_CHECKING:
    from limner.config import Config

MEANING = (
    *("objective", "num_train_timesteps", "prediction_type"),
    *("beta_start", "beta_end", "beta_schedule"),
)
"""Keys of `scheduler` that decide what the network predicts."""
OF_IMAGES = ("patch_size", "in_channels", "out_channels")
MOST_ORIGINS = 16
"""The longest chain of models that start one from another without saying what they inherited."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def load_run_config(
    source: str | Path | dict[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Read, override, validate, and resolve a configuration (`limner.load_config`).

    Like `limner.config.load_config`, but if `training.init_from` names a model (folder, file, or
    Hub id), settings that are not given are inherited from that model's configuration.

    Args:
        source: a YAML file, the name of one that comes with Limner, a dictionary of sections, or
            None for the defaults.
        overrides: `section.key=value` strings, with the value in YAML.

    Raises:
        LimnerError: lists every invalid key with the problem and its fix, or the model is missing.
    """
    return _load(source, overrides, MOST_ORIGINS)


def _load(
    source: str | Path | dict[str, Any] | None, overrides: Sequence[str], origins: int
) -> Config:
    where, values = read_sections(source, overrides)
    if isinstance(values.get("training"), dict) and values["training"].get("init_from"):
        if not origins:
            raise LimnerError(
                f"{where}: training.init_from leads from model to model {MOST_ORIGINS} times, or "
                "in a circle"
            )
        inherit(values, lambda origin: _load(origin, (), origins - 1))
    return build_config(where, values)


def inherit(values: dict[str, Any], load: Callable[[Path | dict[str, Any]], Config]) -> None:
    """Fill in unset keys that describe the model, from the model that the run starts from. If all
    are set (as in a checkpoint), that model is not read.

    Args:
        values: sections of keys, as read; changed in place.
        load: loads a configuration from a YAML file or from its sections.

    Raises:
        LimnerError: it is needed but missing.
    """
    training = values["training"]
    read: list[Config] = []

    def origin() -> Config:
        if not read:
            # A run that has begun has what it inherited, and no longer needs the first model.
            own = _newest(Path(training.get("output_dir") or "./outputs"))
            found = load(own / "config.yaml") if own else None
            begun = str(training["init_from"])
            if found is None or not is_same_place(found.training.init_from, begun):
                found = _of_model(begun, load)
            read.append(found)
        return read[0]

    _fill(values, "vae", ("pretrained_model_name",), origin)
    _fill(values, "text_encoder", ("pretrained_model_name",), origin)
    for section, keys in _keys().items():
        if not _same_part(values, section, origin):
            continue
        _fill(values, section, keys, origin)
    if _same_part(values, "vae", origin):
        _fill(values, "model", OF_IMAGES, origin)


def _newest(folder: Path) -> Path | None:
    """The latest checkpoint in a run's folder. It is not verified here, because all checkpoints of
    a run have the same configuration; whoever reads its weights does that."""
    found = [
        (int(number[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (number := _CHECKPOINT.fullmatch(path.name)) and (path / "config.yaml").is_file()
    ]
    return max(found)[1] if found else None


def _of_model(name: str, load: Callable[[Path | dict[str, Any]], Config]) -> Config:
    """The configuration of a run, a checkpoint (or a file in it), or an exported file."""
    try:
        path = find_model(name)
    except LimnerError as error:
        raise LimnerError(f"training.init_from: {error}") from None
    folder = path.parent if path.is_file() else path
    if (path.is_file() or path.is_dir()) and (folder / "training_state.json").is_file():
        return load(folder / "config.yaml")
    if path.is_dir() and (newest := _newest(path)):
        return load(newest / "config.yaml")
    if not path.is_file():
        raise LimnerError(
            f"training.init_from: no model found at {path.absolute()}; use a run folder, one of "
            "its checkpoints, a file written by limner export, or the Hub id of a published model"
        )
    try:
        sections = file_config(path)
    except LimnerError as error:
        raise LimnerError(f"training.init_from: {error}") from None
    for section in ("vae", "text_encoder"):  # pretrained parts that came along beside the file
        name = sections.get(section, {}).get("pretrained_model_name") or ""
        if name.startswith("./") and (path.parent / name).is_dir():
            sections[section]["pretrained_model_name"] = str(path.parent / name)
    return load(sections)


def _keys() -> dict[str, tuple[str, ...]]:
    model = tuple(key for key in ModelConfig.model_fields if key not in OF_IMAGES)
    return {
        "model": model,
        "vae": tuple(VaeConfig.model_fields),
        "text_encoder": tuple(TextEncoderConfig.model_fields),
        "scheduler": MEANING,
    }


def _fill(
    values: dict[str, Any], section: str, keys: tuple[str, ...], origin: Callable[[], Config]
) -> None:
    mine = values.setdefault(section, {})
    for key in keys:
        if key not in mine:
            mine[key] = origin().model_dump(mode="json")[section][key]


def _same_part(values: dict[str, Any], section: str, origin: Callable[[], Config]) -> bool:
    """Whether a pretrained part is the one that the model was trained with."""
    if section not in ("vae", "text_encoder"):
        return True
    missing = set(_keys()[section]) - set(values[section])
    if section == "vae":
        missing |= set(OF_IMAGES) - set(values["model"])
    if not missing:
        return False  # nothing is unset, so the origin is not needed
    there = getattr(origin(), section).pretrained_model_name
    return is_same_place(values[section]["pretrained_model_name"], there)
