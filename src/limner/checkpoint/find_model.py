"""Resolve the name of a model: a path, or the Hub id of a published one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files.small_files import MOST_YAML_BYTES, parse_json
from limner.pretrained.hub import snapshot

WEIGHTS_FILE = "limner.safetensors"
"""The file of a published model that Limner samples from."""
_MODEL = re.compile(r"([\w.-]+)/[\w.-]+(?<!\.safetensors)(?<!\.pt)(@[\w./-]+)?")
_WAYS = (
    "A model is a run folder (outputs/demo), one of its checkpoints, a file written by limner "
    "export, or the Hub id of a published model. If the connection is slow, set "
    "HF_ENDPOINT=https://hf-mirror.com to use a mirror."
)


def find_model(name: str | Path) -> Path:
    """Locate a model: the given path, or the local copy of a published model.

    Args:
        name: a file or folder, or `owner/name` on the Hub, of which `@revision` may choose a
            branch, tag, or commit. Anything else is returned unchanged, and so is a path into an
            existing folder: with a folder `outputs`, `outputs/demo` is not a repository.

    Returns:
        The path. For a folder that holds `limner.safetensors`, that file; its pretrained parts are
        beside it.

    Raises:
        LimnerError: it looks like a Hub id, but cannot be downloaded.
    """
    path = Path(name).expanduser()
    if not path.exists():
        repository = name.as_posix() if isinstance(name, Path) else name
        match = _MODEL.fullmatch(repository)
        if match is None or Path(match[1]).is_dir():
            return path
        path = _downloaded_model(repository)
    if not (path / WEIGHTS_FILE).is_file() or (path / "training_state.json").is_file():
        return path
    # In a run folder it is just another file, perhaps older than the checkpoints.
    return path if any(path.glob("checkpoint-*")) else path / WEIGHTS_FILE


def _downloaded_model(repository: str) -> Path:
    """Download the weights and the files they need, but no code."""
    name, _, revision = repository.partition("@")

    def get(*patterns: str) -> Path:
        return snapshot(name, "", list(patterns), [], revision or None, _WAYS)

    folder = get(WEIGHTS_FILE)
    if not (folder / WEIGHTS_FILE).is_file():
        from limner.checkpoint.locate import PLAIN_FILES

        folder = get(*PLAIN_FILES)
        if not (folder / "training_state.json").is_file():
            raise LimnerError(
                f"{name!r} is on the Hub, but is not a Limner model: it contains neither "
                f"{WEIGHTS_FILE}, which limner publish uploads, nor the files of a checkpoint"
            )
        return folder
    beside = {"vae": ("vae/*",), "text_encoder": ("text_encoder/*", "tokenizer/*")}
    for section, values in file_config(folder / WEIGHTS_FILE).items():
        if section in beside and values.get("pretrained_model_name") == f"./{section}":
            get(*beside[section])
    return folder


def file_config(path: Path) -> dict[str, dict[str, Any]]:
    """The configuration in the header of a file of weights that Limner wrote, as sections of keys.

    Raises:
        LimnerError: it is not such a file, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
        if "config" not in header:
            raise ValueError("its header has no configuration")
        sections = parse_json(header["config"], "its configuration", MOST_YAML_BYTES)
        return {name: dict(values) for name, values in sections.items()}
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError) as error:
        raise LimnerError(f"{path} was not written by limner export ({error})") from None
