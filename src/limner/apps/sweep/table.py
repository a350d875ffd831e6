"""What a sweep compares in the end, which of it becomes the default, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limner.apps.sweep import sheet
from limner.apps.sweep.measurement import Measurement, cheapest, within_noise
from limner.config import SamplingConfig
from limner.errors import LimnerError
from limner.inference.sampling_settings import in_words


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        name: "before", or the cost that it was searched for.
        sampling: the setting.
        chosen: on the captions that the choice was made by.
        reported: on others; None: time was up before.
    """

    name: str
    sampling: SamplingConfig
    chosen: Measurement
    reported: Measurement | None


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        rows: the setting from before, and the best at each cost, cheapest first.
        best: the row whose setting is to be the default.
        stored: whether it is.
        finished: whether all was tried; if not, the same call goes on.
        checkpoint: folder.
        said: sentences to know beside the numbers.
    """

    rows: list[Row]
    best: Row
    stored: bool
    finished: bool
    checkpoint: Path
    said: list[str]


def choose(rows: Sequence[Row], cost: int | None = None) -> Row:
    """The row to store: of that cost, or the cheapest within noise of the best."""
    if cost is not None:
        asked = [row for row in rows if row.name == str(cost)]
        if not asked:
            raise LimnerError(f"--store {cost}: no setting needs so few evaluations")
        return asked[0]
    best = cheapest([row.chosen for row in rows])
    return next(row for row in rows if row.chosen is best)


def as_line(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {"name": row.name, "sampling": row.sampling.model_dump(mode="json")}
    for name, found in (("chosen", row.chosen), ("reported", row.reported)):
        if found is not None:
            keys = ("cost", "count", "distance", "match", "right")
            line[name] = {key: asdict(found)[key] for key in keys}
    return line


def label_of(row: Row) -> str:
    return f"{'before' if row.name == 'before' else 'best'} at {row.chosen.cost} evaluations"


def comparison(result: Sweep) -> str:
    """The table for the terminal."""
    rows = [["", "evaluations", "distance", "right", "distance*", "right*", "setting"]]
    good = within_noise([row.chosen for row in result.rows])
    for row in result.rows:
        mark = "before" if row.name == "before" else f"<= {row.name}"
        mark += " =" if row.chosen in good else ""
        mark += " >" if row is result.best else ""
        own, theirs = sheet.numbers(row.chosen), sheet.numbers(row.reported)
        rows.append([mark, str(row.chosen.cost), *own, *theirs, in_words(row.sampling)])
    return (
        sheet.table(rows)
        + "\n* on captions that nothing was chosen by; = within noise of the best; > the default "
        + ("from now on" if result.stored else "to choose (nothing was stored)")
    )
