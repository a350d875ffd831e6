"""Options for reading a data set, from the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from limner.config import Config
from limner.data.formats.columns import Columns


@dataclass(frozen=True)
class ReadOptions:
    """
    Attributes:
        columns: `data.image_column` and `data.caption_column`.
        encoding: `data.encoding`, of text files that are not UTF-8.
        allowed: `data.allowed_paths`, folders outside of the data that paths may lead to.
    """

    columns: Columns = field(default_factory=Columns)
    encoding: str | None = None
    allowed: tuple[Path, ...] = ()

    @classmethod
    def of(cls, config: Config) -> ReadOptions:
        data = config.data
        paths = (data.allowed_paths,) if isinstance(data.allowed_paths, str) else data.allowed_paths
        allowed = tuple(Path(path).expanduser().absolute() for path in paths or ())
        return cls(Columns.of(config), data.encoding, allowed)
