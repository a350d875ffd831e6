"""Resolve a pretrained model to a local folder: by path, or by Hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from limner.errors import LimnerError
from limner.files.small_files import read_json
from limner.messages import shorten

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


def find_folder(
    name: str, key: str, subfolder: str | None = None, also: tuple[str, ...] = ()
) -> Path:
    """The local folder that holds config.json and weights of a pretrained part.

    Args:
        name: a local folder, or the id of a Hub repository, which is downloaded once.
        key: of the configuration, for messages: `vae.pretrained_model_name`.
        subfolder: where the part is if the folder or repository is a whole diffusers pipeline.
        also: patterns of files that are wanted besides configurations, weights, and vocabularies.

    Raises:
        LimnerError: saying what was looked for, where, why it cannot be had, and how to get it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(_within(path, subfolder), name, key)
    if _PATH.match(name):
        raise LimnerError(
            f"{key}: {name!r} is not a folder: nothing exists at {path.absolute()}.\n"
            f"{_ways(name, key)}"
        )
    return _checked(_download(name, key, subfolder, also), name, key)


def find_file(name: str, key: str, patterns: tuple[str, ...]) -> Path:
    """A single file of weights: by its path, or the one in a folder or Hub repository.

    Args:
        patterns: what the file may be called; the first that is there is taken.

    Raises:
        LimnerError: as `find_folder`.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        if _PATH.match(name) or path.suffix:
            raise LimnerError(
                f"{key}: {name!r} is neither a file nor a folder: nothing exists at "
                f"{path.absolute()}."
            )
        path = snapshot(name, key, list(patterns), [])
    for pattern in patterns:
        if found := sorted(path.glob(pattern)):
            return found[0]
    raise LimnerError(
        f"{key}: {name!r} was found at {path.absolute()}, but it contains no "
        f"{' or '.join(patterns)}"
    )


def read_pretrained(family: Any, folder: Path, key: str, **options: Any) -> Any:
    """`family.from_pretrained` of transformers, quiet, and with its errors in a sentence.

    Nothing is downloaded, and no code that lies in the folder is run. Raises LimnerError.
    """
    logging = transformers_for(key).utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list the other half of a model that has two
    logging.disable_progress_bar()
    try:
        return family.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # damaged, foreign, or unknown: nearly any exception
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        if "ignore_mismatched_sizes" in reason:  # it points to a report that is not shown here
            reason = "the shapes of its weights do not match its config.json"
        raise LimnerError(f"{key}: {folder} cannot be loaded: {reason}") from None
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def transformers_for(key: str) -> Any:
    """The package transformers, or a LimnerError that says what needs it."""
    try:
        import transformers
    except ImportError:
        raise LimnerError(
            f'{key} requires the package transformers; run pip install "limner[pretrained]"'
        ) from None
    return transformers


def weight_files(folder: Path) -> list[Path]:
    """Every file that decides what the part computes, by name: its hash is the part's identity."""
    files = [path for path in folder.iterdir() if path.is_file()]
    kind = next((k for k in WEIGHTS if any(path.suffix == k for path in files)), "")
    texts = {pattern.removeprefix("*") for pattern in TEXTS}
    return sorted(path for path in files if path.suffix == kind or path.suffix in texts)


def read_config(folder: Path) -> dict[str, Any]:
    """The part's config.json. Raises LimnerError."""
    try:
        found = read_json(folder / "config.json")
    except FileNotFoundError:
        raise LimnerError(f"{folder / 'config.json'} is missing") from None
    if not isinstance(found, dict):
        raise LimnerError(f"{folder / 'config.json'} contains {shorten(found)} instead of settings")
    return found


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
            f"{key}: {name!r} was found at {folder.absolute()}, but it contains no {missing}, so "
            "it was not written by save_pretrained.\n"
            f"{_ways(name, key)}"
        )
    return folder


def _download(name: str, key: str, subfolder: str | None, also: tuple[str, ...]) -> Path:
    def get(*patterns: str, only_root: bool) -> Path:
        ignored = [*NEVER, "*/*"] if only_root else list(NEVER)
        return snapshot(name, key, list(patterns), ignored)

    top = get("config.json", "model_index.json", only_root=True)
    inner = bool(subfolder) and (top / "model_index.json").is_file()
    prefix = f"{subfolder}/" if inner else ""
    # A pipeline keeps the tokenizer in a folder of its own, beside the text encoder's.
    beside = ["tokenizer/*"] if inner and subfolder == "text_encoder" else []
    texts = [prefix + pattern for pattern in (*TEXTS, *also)] + beside
    for kind in WEIGHTS:
        top = get(f"{prefix}*{kind}", *texts, only_root=not inner)
        folder = top / subfolder if inner and subfolder else top
        if folder.is_dir() and any(path.suffix == kind for path in folder.iterdir()):
            break
    return folder


def snapshot(
    name: str,
    key: str,
    patterns: list[str],
    ignored: list[str],
    revision: str | None = None,
    ways: str | None = None,
) -> Path:
    """The local copy of what `patterns` name in a Hub repository.

    Args:
        key: as `find_folder`; empty: the message names none.
        ways: out of it, to be told; None: those for a pretrained part.

    Raises:
        LimnerError: it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
            )
        )
    except hub.GatedRepoError:
        why = (
            f"it is gated: accept its terms at {constants.ENDPOINT}/{name} and log in with "
            "`hf auth login`"
        )
    except hub.RepositoryNotFoundError:
        why = "there is no such repository, or it is private; check the spelling"
    except hub.RevisionNotFoundError:
        why = f"it has no revision {revision!r}"
    except hub.HFValidationError as error:
        why = f"that is not a valid id ({str(error).splitlines()[0]})"
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError) as error:
        offline = constants.HF_HUB_OFFLINE or isinstance(error, hub.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else "it cannot be reached"
        why += f", and it is not in the local cache {constants.HF_HUB_CACHE}"
    except OSError as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
    asked = f"{key}: {name!r}" if key else repr(name)
    raise LimnerError(
        f"{asked} was not found. There is no folder at {Path(name).absolute()}, and the repository "
        f"cannot be read at {constants.ENDPOINT}/{name}: {why}.\n"
        f"{ways or _ways(name, key)}"
    )


def _ways(name: str, key: str) -> str:
    # A flag of a command, such as --model, is not a key that can be null.
    give = f"use {key} FOLDER." if key.startswith("-") else f"set {key}=FOLDER; or set it to null"
    return (
        "To get it: set HF_ENDPOINT=https://hf-mirror.com to use a mirror; or run\n"
        f"  hf download {name if not _PATH.match(name) else 'ID'} --local-dir FOLDER\n"
        f"on a machine that can reach it, copy the folder here, and {give}"
        + ("" if key.startswith("-") else " to do without.")
    )
