"""A model in one safetensors file: EMA weights, with configuration and tokenizer in its header.

A .safetensors file that any program can read, with metadata
    limner_version   of the Limner that wrote it
    config           the configuration, JSON
    tokenizer        of the built-in text encoder, JSON (absent with a pretrained one)
    training         how far the run was: step, images, seconds, JSON
    lineage          what the model began from and learned from, JSON (see lineage.py)
    words            of the captions, JSON (see text/known_words.py; absent of private data)
    sha256           of the weights, in the order of their names
    header_sha256    of all of the above (absent in files of earlier versions)
    modelspec.*      what programs that manage models show of it, by the keys of ModelSpec
                     (https://github.com/Stability-AI/ModelSpec); nothing here depends on them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limner.checkpoint.lineage import Lineage, learned_from
from limner.checkpoint.matching import fit_weights
from limner.checkpoint.state import TrainingState
from limner.config import Config, load_config
from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.files.small_files import MOST_YAML_BYTES, parse_json
from limner.files.tensor_files import load_safetensors
from limner.messages import shorten
from limner.models.size import check_stored
from limner.pretrained.components import moved
from limner.text.known_words import KnownWords
from limner.text.tokenizer import CaptionTokenizer
from limner.version import __version__

SUFFIX = ".safetensors"
PROGRESS = ("step", "images", "seconds")
"""The fields of the training state that are kept."""
MODEL_SPEC = "modelspec."
"""What the keys of ModelSpec begin with. Programs edit their texts, so no checksum covers them."""
HASH = f"{MODEL_SPEC}hash_sha256"


@dataclass(frozen=True)
class WeightsFile:
    """An opened file of weights; the weights themselves are read on demand."""

    path: Path
    config: Config
    tokenizer: CaptionTokenizer | None
    """None: captions are read by a pretrained text encoder."""
    state: TrainingState
    limner_version: str
    sha256: str
    lineage: Lineage
    words: KnownWords | None = None
    """Of the captions that its built-in text encoder learned from; None: the file does not say."""
    model_spec: dict[str, str] = field(default_factory=dict)
    """The texts of ModelSpec by key, without `modelspec.`; empty in files of earlier versions."""

    @classmethod
    def open(cls, path: str | Path) -> WeightsFile:
        """Read everything but the weights. Raises LimnerError if it is not such a file."""
        path = Path(path)
        metadata = _metadata(path)
        if "config" not in metadata or "limner_version" not in metadata:
            raise LimnerError(
                f"{path} contains weights, but was not written by limner export: its header has no "
                "configuration"
            )
        if metadata.get("header_sha256", sealed := _sha256_of_texts(metadata)) != sealed:
            raise LimnerError(
                f"{path} is damaged: its header is not what was written (checksum mismatch); get "
                "it again"
            )
        config = parse_json(metadata["config"], f"{path}: its configuration", MOST_YAML_BYTES)
        if not isinstance(config, dict):
            raise LimnerError(f"{path} is damaged: its configuration is {shorten(config)}")
        progress = parse_json(metadata.get("training", "{}"), f"{path}: its training state")
        state = TrainingState.of(progress, path)
        try:
            resolved = _beside(load_config(config), path.parent)
        except LimnerError as error:
            raise LimnerError(f"{path}: {error}") from None
        check_stored(resolved, path.stat().st_size, path)
        tokenizer = None
        if resolved.text_encoder.pretrained_model_name is None:
            assert resolved.text_encoder.max_length
            tokenizer = CaptionTokenizer.from_text(
                metadata.get("tokenizer", ""), resolved.text_encoder.max_length, path
            )
        version, digest = metadata["limner_version"], metadata.get("sha256", "")
        if "lineage" in metadata:
            lineage = Lineage.from_json(metadata["lineage"], path)
        else:
            lineage = Lineage(data=(learned_from(resolved),), complete=False)
        words = KnownWords.from_json(metadata["words"], path) if "words" in metadata else None
        spec = {
            key.removeprefix(MODEL_SPEC): text
            for key, text in metadata.items()
            if key.startswith(MODEL_SPEC)
        }
        return cls(path, resolved, tokenizer, state, version, digest, lineage, words, spec)

    def tensors(self, averaged: bool = True) -> dict[str, Tensor]:
        """The weights by name, as they are in the file. Raises LimnerError if they are damaged."""
        weights = load_safetensors(self.path)
        if sha256_of(weights) != self.sha256:
            raise LimnerError(
                f"{self.path} is damaged: its weights are not what was written (checksum "
                "mismatch); get it again"
            )
        return weights

    def load_weights(self, model: nn.Module, averaged: bool = True) -> None:
        """Load the weights into the model; the file has only the averaged ones."""
        fit_weights(model, self.tensors(), self.path)


def write_weights_file(
    path: Path,
    weights: dict[str, Tensor],
    config: Config,
    tokenizer: CaptionTokenizer | None,
    state: TrainingState,
    lineage: Lineage,
    words: KnownWords | None = None,
    model_spec: Mapping[str, str] | None = None,
) -> None:
    """Write the file atomically and durably.

    Args:
        model_spec: texts of ModelSpec by key, without `modelspec.` and the hash, which is added;
            None: the file has none.

    Raises:
        LimnerError: the path exists and is not such a file.
        OSError: it could not be written.
    """
    if path.exists():
        try:
            WeightsFile.open(path).tensors()  # tools that merge weights keep the header
        except LimnerError:
            raise LimnerError(
                f"{path} already exists and is not an earlier export, or was changed since, so it "
                "is not overwritten; use a new file"
            ) from None
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    progress = {key: value for key, value in asdict(state).items() if key in PROGRESS}
    metadata = {
        "format": "pt",
        "limner_version": __version__,
        "config": json.dumps(config.model_dump(mode="json"), ensure_ascii=False),
        "training": json.dumps(progress),
        "lineage": lineage.to_json(indent=None),
        "sha256": sha256_of(weights),
    }
    if tokenizer is not None:
        metadata["tokenizer"] = tokenizer.tokenizer.to_str()
    if words is not None:
        metadata["words"] = words.to_json()
    metadata["header_sha256"] = _sha256_of_texts(metadata)
    if model_spec is not None:
        metadata |= {MODEL_SPEC + key: text for key, text in model_spec.items()}
        metadata[HASH] = f"0x{0:064x}"  # until the file is there
    needed = sum(tensor.nbytes for tensor in weights.values())
    with replacing(path, needed=needed) as staging:
        save_file(weights, staging, metadata)
        _finish_header(staging)
        WeightsFile.open(staging).tensors()


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise LimnerError(f"{path} cannot be read as safetensors: {error}") from None


def _sha256_of_texts(metadata: dict[str, str]) -> str:
    """SHA-256 of the header without this entry: how captions are read depends on it, too."""
    texts = {
        key: text
        for key, text in metadata.items()
        if key != "header_sha256" and not key.startswith(MODEL_SPEC)
    }
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _finish_header(path: Path) -> None:
    """Fills in the hash of ModelSpec, which is of everything behind the header, and sorts the
    entries: safetensors writes them in any order, and the same model shall be the same file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = dict(sorted(header.pop("__metadata__").items()))
        if HASH in metadata:
            metadata[HASH] = f"0x{hashlib.file_digest(file, 'sha256').hexdigest()}"
        header = {"__metadata__": metadata, **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "it is the same text in another order"
        file.seek(8)
        file.write(text.ljust(length))


def sha256_of(weights: dict[str, Tensor]) -> str:
    """SHA-256 of the tensors, in the order of their names."""
    hasher = hashlib.sha256()
    for name in sorted(weights):
        hasher.update(name.encode())
        hasher.update(weights[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _beside(config: Config, folder: Path) -> Config:
    """Use the pretrained parts in folders beside the file, ./vae and ./text_encoder, if there are
    any."""
    places = {
        section: folder / name
        for section in ("vae", "text_encoder")
        if (name := getattr(config, section).pretrained_model_name) is not None
        and name.startswith("./")
        and (folder / name).is_dir()
    }
    return moved(config, **places)
