"""The configuration as a whole: read, overridden, checked, and resolved.

It comes from YAML files and `section.key=value` overrides, is validated as a whole, and is saved
resolved (no value left to be chosen) with the run and inside each checkpoint.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from limner.config.checks import misfits, problems
from limner.config.defaults import changed, fill_head_sizes, fit_to_images, resolve
from limner.config.messages import explain, sentence
from limner.config.schema import Config, known_keys
from limner.errors import LimnerError
from limner.files.small_files import parse_yaml, read_yaml
from limner.messages import shorten

Sections = dict[str, dict[str, Any]]
"""Values of a configuration by section and key, before they are checked."""


def load_config(
    source: str | Path | dict[str, Any] | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Read, override, check, and resolve a configuration. Nothing but the YAML file is read.

    What `training.init_from` leaves to the model that it names is not looked up here: that is
    `limner.checkpoint.inherit.load_run_config`, which the commands (and `limner.load_config`) call.

    Args:
        source: a YAML file, the name of one that comes with Limner, a dictionary of sections, or
            None for the defaults.
        overrides: `section.key=value` strings, the value in YAML.

    Raises:
        LimnerError: naming every wrong key, what is wrong with it, and what to do.
    """
    return build_config(*read_sections(source, overrides))


def read_sections(
    source: str | Path | dict[str, Any] | None, overrides: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """What a configuration says, not yet checked: where it stands, and its sections of keys."""
    where, values = _read(source)
    for text in overrides:
        _override(values, text)
    for section, keys in FROM_HOME.items():
        found = values.get(section)
        if isinstance(found, dict):
            texts = {key: found[key] for key in keys if isinstance(found.get(key), str)}
            found.update({key: os.path.expanduser(text) for key, text in texts.items()})
    return where, values


def build_config(where: str, values: dict[str, Any]) -> Config:
    """Check sections of keys, and choose what they leave open.

    Args:
        where: what messages call the configuration.
    """
    fill_head_sizes(values.get("model"))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        sections = list(Config.model_fields)
        # Of a key that takes a word or a number, what is said is what is wrong with the number.
        wrong = [
            e
            for e in error.errors()
            if not any(str(part).startswith("literal[") for part in e["loc"][2:])
        ]
        said = [sentence(e, known_keys(), sections) for e in wrong]
        raise LimnerError(explain(where, said)) from None
    config = resolve(config)
    if found := list(problems(config)):
        raise LimnerError(explain(where, found))
    return config


log = logging.getLogger(__name__)

FROM_HOME = {
    "training": ("output_dir", "init_from"),
    "cache": ("folder",),
    "evaluation": ("reference", "inception", "dinov2", "clip"),
}
"""Keys in which `~` is the home folder, which a shell makes of it at the beginning of a word alone.
The data and the pretrained parts are looked for there when they are opened: what is saved is what
was said, which is the same run for somebody with another home."""
OTHER_NAME = "dit"
"""What other programs for Diffusion Transformers call the section `model`."""


def _read(source: str | Path | dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if source is None:
        return "configuration", {}
    if isinstance(source, dict):
        return "configuration", _sections(source)
    path = _file(Path(source).expanduser())
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise LimnerError(f"{path} holds a {type(values).__name__}; expected sections with keys")
    return str(path), _sections(values)


def _file(path: Path) -> Path:
    """The file that is meant: the reader's own, or one that comes with Limner, which is called
    `configs/name.yaml`, as in documents, or `name` alone."""
    if path.is_file():
        return path
    names = shipped()
    name = path.stem if path.suffix == ".yaml" else path.name
    if path.parts == ("configs", f"{name}.yaml") and name in names:
        log.info(f"{path} is not here; using the one that comes with Limner")
        return names[name]
    alone = path.parts == (name,)
    if path.is_dir():
        raise LimnerError(
            f"configuration file not found: {path.absolute()} is a folder; --config expects a YAML "
            "file" + (f" (configs/{name}.yaml comes with Limner)" if name in names else "")
        )
    if alone and name in names:
        log.info(f"{name} is the configuration of this name that comes with Limner")
        return names[name]
    near = difflib.get_close_matches(name, names, n=1)
    listed = f", or one that comes with Limner: {', '.join(names)}" if alone or near else ""
    raise LimnerError(
        f"configuration file not found: {path.absolute()}; "
        + (f"did you mean --config {near[0]}? " if near else "")
        + f"--config expects a YAML file{listed}"
    )


def shipped() -> dict[str, Path]:
    """By their names, the configurations that came with the installed package, or that are in the
    checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if found := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in found}
    return {}


def _sections(values: dict[Any, Any]) -> dict[Any, Any]:
    """A copy to override. A section whose keys are all commented out is None in YAML: it is {}."""
    sections = {
        k: dict(v) if isinstance(v, dict) else {} if v is None else v for k, v in values.items()
    }
    if isinstance(other := sections.get(OTHER_NAME), dict):
        model = sections.setdefault("model", {})
        if not isinstance(model, dict):
            return sections  # what is wrong with it is said when all keys are validated
        for key in sorted(other.keys() & model.keys(), key=str):
            if other[key] != model[key]:
                raise LimnerError(
                    f"{OTHER_NAME}.{key} is {shorten(other[key])} and model.{key} is "
                    f"{shorten(model[key])}, but `{OTHER_NAME}` is another name for the section "
                    "`model`; keep one of them"
                )
        sections["model"] = {**sections.pop(OTHER_NAME), **model}
    return sections


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise LimnerError(f"'{text}' is not a valid override; use section.key=value")
    section = "model" if section == OTHER_NAME else section
    if not isinstance(values.get(section), dict):
        values[section] = {}
    try:
        read = parse_yaml(value, key)
    except LimnerError:
        read = value
    values[section][name] = _as_typed(value, read) if _is_text(section, name) else read


def _is_text(section: str, name: str) -> bool:
    """Whether a key takes words of any kind, such as the name of a folder."""
    known = Config.model_fields.get(section)
    keys = known.annotation.model_fields if known is not None else {}  # type: ignore[union-attr]
    kind = keys[name].annotation if name in keys else None
    return kind is str or str in get_args(kind)


def _as_typed(typed: str, read: Any) -> Any:
    """A text on the command line. YAML would end it at " #", and make `20: 30` and `2026-11-29`
    something else than the names of folders that they are."""
    typed = typed.strip()
    means_nothing = read is None and not typed.startswith("#")
    return read if means_nothing or typed[:1] in tuple("\"'[{|>!") else typed


def complete(
    config: Config,
    channels: int = 3,
    downsampling: int = 1,
    vae_fingerprint: str | None = None,
    max_length: int | None = None,
    text_fingerprint: str | None = None,
) -> Config:
    """Choose what only the pretrained parts can tell, and check the configuration against them.

    Args:
        channels, downsampling: of the autoencoder's latents; 3 and 1 in pixel space.
        max_length: tokens that the pretrained text encoder reads; None for the built-in one.
        vae_fingerprint, text_fingerprint: hashes of the weights that were found.

    Raises:
        LimnerError: naming each key that does not fit the parts.
    """
    config = fit_to_images(config, channels, downsampling)
    config = config.model_copy(
        update={
            "vae": changed(config.vae, fingerprint=vae_fingerprint),
            "text_encoder": changed(
                config.text_encoder,
                max_length=max_length or config.text_encoder.max_length,
                fingerprint=text_fingerprint,
            ),
        }
    )
    if found := [*problems(config), *misfits(config, channels, downsampling)]:
        raise LimnerError(explain("configuration", found))
    return config
