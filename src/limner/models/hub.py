"""From a name to a folder: a pretrained part by local path or Hub id, and what to do without it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from limner.errors import LimnerError

WEIGHTS = (".safetensors", ".bin")
"""Formats that hold tensors only, or are read as such; the first that is there is used."""
TEXTS = ("*.json", "*.txt", "*.model")
"""Configurations, tokenizers, vocabularies."""
NEVER = (
    "*.fp16.*",
    "*non_ema*",
    "consolidated*",
    "flax_*",
    "tf_*",
    "training_args*",
)
"""The same weights again, in another precision or for other frameworks."""
_PATH = re.compile(r"[./~]|[A-Za-z]:[\\/]|.*\\|[^/]*/[^/]*/|.*[/\\]$")


def find_folder(name: str, key: str, subfolder: str | None = None) -> Path:
    """The local folder that holds config.json and weights of a pretrained part.

    Args:
        name: a local folder, or the id of a Hub repository, which is downloaded once.
        key: of the configuration, for messages: `vae.pretrained_model_name`.
        subfolder: where the part is if the folder or repository is a whole diffusers pipeline.

    Raises:
        LimnerError: saying what was looked for, where, why it cannot be had, and how to get it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(_within(path, subfolder), name, key)
    if _PATH.match(name):
        raise LimnerError(
            f"{key}: {name!r} is no folder: nothing is at {path.absolute()}.\n{_ways(name, key)}"
        )
    return _checked(_download(name, key, subfolder), name, key)


def weight_files(folder: Path) -> list[Path]:
    """Every file that decides what the part computes, by name: its hash is the part's identity."""
    files = [path for path in folder.iterdir() if path.is_file()]
    kind = next((k for k in WEIGHTS if any(path.suffix == k for path in files)), "")
    texts = {pattern.removeprefix("*") for pattern in TEXTS}
    return sorted(path for path in files if path.suffix == kind or path.suffix in texts)


def read_config(folder: Path) -> dict[str, Any]:
    """The part's config.json. Raises LimnerError."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LimnerError(f"{folder / 'config.json'} cannot be read: {error}") from None


def _within(path: Path, subfolder: str | None) -> Path:
    inner = path / subfolder if subfolder else path
    is_pipeline = (path / "model_index.json").is_file() or not (path / "config.json").is_file()
    return inner if is_pipeline and (inner / "config.json").is_file() else path


def _checked(folder: Path, name: str, key: str) -> Path:
    missing = ""
    if not (folder / "config.json").is_file():
        missing = "config.json"
    elif not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        missing = "weights (*.safetensors or *.bin)"
    if missing:
        raise LimnerError(
            f"{key}: {name!r} was found at {folder.absolute()}, but it holds no {missing}, so it "
            f"is not what save_pretrained writes.\n{_ways(name, key)}"
        )
    return folder


def _download(name: str, key: str, subfolder: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    def get(*patterns: str, only_root: bool) -> Path:
        ignored = [*NEVER, "*/*"] if only_root else list(NEVER)
        found = snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=ignored)
        return Path(found)

    try:
        top = get("config.json", "model_index.json", only_root=True)
        inner = bool(subfolder) and (top / "model_index.json").is_file()
        prefix = f"{subfolder}/" if inner else ""
        # A pipeline keeps the tokenizer in a folder of its own, beside the text encoder's.
        beside = ["tokenizer/*"] if inner and subfolder == "text_encoder" else []
        texts = [prefix + pattern for pattern in TEXTS] + beside
        for kind in WEIGHTS:
            top = get(f"{prefix}*{kind}", *texts, only_root=not inner)
            folder = top / subfolder if inner and subfolder else top
            if folder.is_dir() and any(path.suffix == kind for path in folder.iterdir()):
                break
        return folder
    except hub.GatedRepoError:
        why = (
            f"it is gated: accept its terms at {constants.ENDPOINT}/{name} and log in with "
            "`hf auth login`"
        )
    except hub.RepositoryNotFoundError:
        why = "there is no such repository, or it is private: check the spelling"
    except hub.HFValidationError as error:
        why = f"that is no legal id ({str(error).splitlines()[0]})"
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError) as error:
        offline = constants.HF_HUB_OFFLINE or isinstance(error, hub.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else "there is no connection to it"
        why += f", and it is not in the local cache {constants.HF_HUB_CACHE}"
    except OSError as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise LimnerError(
        f"{key}: {name!r} could not be had. Looked for a folder at {Path(name).absolute()}, which "
        f"is not there, and for a repository at {constants.ENDPOINT}/{name}: {why}.\n"
        f"{_ways(name, key)}"
    )


def _ways(name: str, key: str) -> str:
    return (
        "To get it: set HF_ENDPOINT=https://hf-mirror.com to use a mirror; or run\n"
        f"  hf download {name if not _PATH.match(name) else 'ID'} --local-dir FOLDER\n"
        f"on a machine that can, bring the folder, and set {key}=FOLDER; or set it to null to "
        "do without."
    )
