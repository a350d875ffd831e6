"""What drawings are compared with: the data set's own pictures, a folder of them, or an archive."""

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
from limner.evaluation.splits import Split

KEY = "evaluation.reference"


@dataclass(frozen=True)
class Reference:
    """Real pictures, as a source that every network looks at once.

    Attributes:
        source: the pictures; of a published archive perhaps none, but their moments.
        others: other real pictures of the same kind, for the floor; None: there are none, and the
            floor is that between two parts of `source`.
        others_are: what they are, in words.
    """

    source: Source
    others: Source | None
    others_are: str

    def statistics(
        self, network: FeatureNetwork, cache: Path, progress: Progress | None = None
    ) -> Statistics:
        """As a network sees it, from the cache if it is there."""
        if isinstance(self.source, Archive):
            return archive_statistics(self.source.path, network, cache, progress=progress)
        return statistics_of(self.source, network, cache, progress=progress)

    def protocol(self, cache: Path) -> dict[str, str | int | None]:
        """What decides it: the pictures' contents in their order, and how they came to their
        size."""
        return {
            "reference.contents": self.source.contents(cache).hex(),
            "reference.pictures": self.source.count,
            "reference.resize": self.source.preparation,
        }


def open_reference(config: Config, data: Data, split: Split) -> Reference:
    """The reference of a configuration.

    Args:
        split: held out or trained, that of the prompts that are drawn: without a reference of
            one's own the real pictures of the same captions are it, so that only how they are
            drawn differs, and not what is asked for.

    Raises:
        LimnerError: it is not there, or is none.
    """
    wanted = config.evaluation.reference
    if wanted is not None:
        path = Path(wanted)
        if path.suffix == ".npz":
            return Reference(Archive(path), None, "")
        if not path.is_dir():
            raise LimnerError(
                f"{KEY}: {path.absolute()} is neither a folder of pictures nor an .npz file"
            )
        return Reference(ImageFolder(path, config.data.image_size), None, "")
    own, other = data.trained, data.held_out
    if split is Split.HELD_OUT:
        own, other = other, own
    most = config.evaluation.reference_images
    source = DataImages(own, evenly_spaced(len(own.rows), most))
    # Where the split is by hash the other pictures are of the same kind. Where the data set has a
    # rule of its own for what it holds out (combinations never trained, ...) they are of another.
    rows = [*own.rows, *other.rows]
    if len(other.rows) < 2 or any(row.held_out is not None for row in rows):
        return Reference(source, None, "")
    others = DataImages(other, evenly_spaced(len(other.rows), config.evaluation.num_images))
    which = Split.TRAINED if split is Split.HELD_OUT else Split.HELD_OUT
    return Reference(source, others, f"{which.hyphened} pictures")
