"""Find and identify the pretrained autoencoder and text encoder that a configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner.config import Config, complete
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints, digest
from limner.pretrained.autoencoder import IdentityAutoencoder, PretrainedAutoencoder
from limner.pretrained.hub import weight_files
from limner.pretrained.text_encoder import PretrainedTextEncoder


@dataclass(frozen=True)
class Parts:
    """The autoencoder and the text encoder of a model."""

    config: Config
    """Completed by what the parts say: channels, patch size, fingerprints."""
    autoencoder: IdentityAutoencoder | PretrainedAutoencoder
    text_encoder: PretrainedTextEncoder | None
    """None: the built-in text encoder, trained along."""

    @property
    def unit(self) -> int:
        """Pixels of one patch of the model, of which a picture's sides are multiples."""
        return self.autoencoder.downsampling * (self.config.model.patch_size or 1)


def open_parts(config: Config) -> Parts:
    """Find the autoencoder and the text encoder without loading their weights.

    Raises:
        LimnerError: one cannot be had, does not fit the configuration, or has other weights than
            the configuration's fingerprint says.
    """
    known = Fingerprints(Path(config.cache.folder) / "contents.npy")
    space: IdentityAutoencoder | PretrainedAutoencoder = IdentityAutoencoder()
    reader, vae_fingerprint, text_fingerprint = None, None, None
    if config.vae.pretrained_model_name is not None:
        space = PretrainedAutoencoder(config.vae)
        vae_fingerprint = _identify("vae", space.folder, config.vae.fingerprint, known)
    if config.text_encoder.pretrained_model_name is not None:
        reader = PretrainedTextEncoder(config.text_encoder)
        text_fingerprint = _identify(
            "text_encoder", reader.folder, config.text_encoder.fingerprint, known
        )
    completed = complete(
        config,
        space.channels,
        space.downsampling,
        vae_fingerprint,
        reader.max_length if reader else None,
        text_fingerprint,
    )
    if Path(config.cache.folder).is_dir():
        known.save()  # the next start need not read gigabytes of weights to know them
    return Parts(completed, space, reader)


def moved(config: Config, **places: str | Path | None) -> Config:
    """The configuration with new paths for the pretrained components.

    Args:
        places: `vae` and `text_encoder`; None: where they were.
    """
    changes = {
        section: getattr(config, section).model_copy(update={"pretrained_model_name": str(place)})
        for section, place in places.items()
        if place is not None
    }
    return config.model_copy(update=changes)


def _identify(section: str, folder: Path, expected: str | None, known: Fingerprints) -> str:
    files = weight_files(folder)
    contents = known.of_files(files)
    unreadable = [file for file, content in zip(files, contents, strict=True) if not content.any()]
    if unreadable:
        raise LimnerError(f"{unreadable[0]} cannot be read; check the file and your permissions")
    named = [p for f, c in zip(files, contents, strict=True) for p in (f.name, c.tobytes())]
    found = digest(*named).hex()
    if expected is not None and found != expected:
        raise LimnerError(
            f"{section}.pretrained_model_name: {folder} contains other weights ({found}) than "
            f"those the checkpoint was trained with ({expected}), which are not interchangeable; "
            f"use the folder with those, or remove {section}.fingerprint to start over"
        )
    return found
