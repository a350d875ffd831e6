"""The final comparison of a sweep, and the selection of the new default."""

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
from limner.messages import plural


@dataclass(frozen=True)
class Row:
    """One row of the comparison.

    Attributes:
        name: "before", or the cost of the search.
        sampling: the setting.
        chosen: measured on the captions used for the selection.
        reported: measured on other captions; None if there was no time.
    """

    name: str
    sampling: SamplingConfig
    chosen: Measurement
    reported: Measurement | None


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        rows: the previous setting, and the best at each cost, cheapest first.
        best: the row with the new default.
        stored: whether it was stored.
        finished: whether the search was completed; if not, another call continues.
        checkpoint: the checkpoint folder.
        said: notes on the results.
    """

    rows: list[Row]
    best: Row
    stored: bool
    finished: bool
    checkpoint: Path
    said: list[str]


def choose(rows: Sequence[Row], cost: int | None = None) -> Row:
    """The row to store: the one at `cost`, or the cheapest within noise of the best."""
    if cost is not None:
        asked = [row for row in rows if row.name == str(cost)]
        if not asked:
            raise LimnerError(
                f"--store {cost}: every setting requires more evaluations; use a higher cost"
            )
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
    cost = f"{row.chosen.cost} {plural(row.chosen.cost, 'evaluation')}"
    return f"{'before' if row.name == 'before' else 'best'} at {cost}"


def comparison(result: Sweep) -> str:
    """The table for the terminal."""
    rows = [["", "evaluations", "distance", "correct", "distance*", "correct*", "setting"]]
    good = within_noise([row.chosen for row in result.rows])
    for row in result.rows:
        mark = "before" if row.name == "before" else f"<= {row.name}"
        mark += " =" if row.chosen in good else ""
        mark += " >" if row is result.best else ""
        own, theirs = sheet.numbers(row.chosen), sheet.numbers(row.reported)
        rows.append([mark, str(row.chosen.cost), *own, *theirs, in_words(row.sampling)])
    return (
        sheet.table(rows)
        + "\n* on captions not used for the selection; = within noise of the best; > "
        + ("the new default" if result.stored else "the suggested default (not stored)")
    )
