"""The reference images: those of the data set, a folder, or an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner.config import Config
from limner.data.open import Data
from limner.data.order import evenly_spaced
from limner.errors import LimnerError
from limner.evaluation.networks.networks import FeatureNetwork
from limner.evaluation.reference.archives import Archive
from limner.evaluation.reference.sources import DataImages, ImageFolder, Source
from limner.evaluation.reference.statistics import (
    Progress,
    Statistics,
    archive_statistics,
    statistics_of,
)
from limner.evaluation.splits import Split, adjective

KEY = "evaluation.reference"


@dataclass(frozen=True)
class Reference:
    """The real images to compare with.

    Attributes:
        source: the images; a published archive may contain only their mean and covariance.
        others: other real images from the same distribution, for the real-vs-real baseline; None:
            `source` is split in two instead.
        others_are: describes them.
    """

    source: Source
    others: Source | None
    others_are: str

    def statistics(
        self, network: FeatureNetwork, cache: Path, progress: Progress | None = None
    ) -> Statistics:
        """Statistics of a network's features, from the cache if available."""
        if isinstance(self.source, Archive):
            return archive_statistics(self.source.path, network, cache, progress=progress)
        return statistics_of(self.source, network, cache, progress=progress)

    def protocol(self, cache: Path) -> dict[str, str | int | None]:
        """Protocol keys: the contents of the images in order, and how they were resized."""
        return {
            "reference.contents": self.source.contents(cache).hex(),
            "reference.pictures": self.source.count,
            "reference.resize": self.source.preparation,
        }


def open_reference(config: Config, data: Data, split: Split, images: int) -> Reference:
    """The reference of a configuration.

    Args:
        split: the split of the prompts. Without `evaluation.reference`, the reference is the real
            images of that split, so that both sets have the same captions.
        images: number of generated images that are measured; the baseline takes as many real ones,
            if there are.

    Raises:
        LimnerError: the reference does not exist or is invalid.
    """
    wanted = config.evaluation.reference
    if wanted is not None:
        path = Path(wanted)
        if path.suffix == ".npz":
            return Reference(Archive(path), None, "")
        if not path.is_dir():
            raise LimnerError(
                f"{KEY}: {path.absolute()} is neither a folder of images nor an .npz file"
            )
        return Reference(ImageFolder(path, config.data.image_size), None, "")
    own, other = data.trained, data.held_out
    if split is Split.HELD_OUT:
        own, other = other, own
    most = config.evaluation.reference_images
    source = DataImages(own, evenly_spaced(len(own.rows), most))
    # A split by hash gives both parts the same distribution. If the data set has its own rule for
    # what it holds out (unseen combinations, ...), the distributions differ.
    rows = [*own.rows, *other.rows]
    if len(other.rows) < 2 or any(row.held_out is not None for row in rows):
        return Reference(source, None, "")
    others = DataImages(other, evenly_spaced(len(other.rows), images))
    which = Split.TRAINED if split is Split.HELD_OUT else Split.HELD_OUT
    return Reference(source, others, f"{adjective(which)} images")
