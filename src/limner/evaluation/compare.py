"""Two evaluations side by side, number by number, where they were made in the same way.

What must be equal is decided for each number, by the parts of the protocol that it depends on: two
held-out losses know nothing of the sampler, and FID on other weights of Inception leaves CLIP's
numbers what they are. What may differ is what is compared: the model, its size, its training, and
the checkpoint, none of which is in the protocol.

The guidance, the steps, and all else of the sampler must be equal, although another sampler may be
the very thing that is asked about: quality bought with ten times the steps is not another model's.
Who means it says so (`varying`). Versions of torch and of this program are said where they differ
and refuse nothing: the first change roundings, and where the second change a number, `method` does.
Nor is the device asked: in float32 it changes roundings, and `drawn.dtype` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limner.errors import LimnerError
from limner.metrics.interval import Measured, interval_of_difference

DRAWN = ("method", "drawn.", "sampling.")
ASKED = ("method", "asked.", "sampling.", "drawn.resolution", "drawn.dtype", "data.")
"""Of recall, the checker, and copies: their pictures are others than those of the distances, and
the range and the neighbours are all pictures of the data set."""
LOSS = ("method", "loss.")
SAID = ("software.",)


@dataclass(frozen=True)
class Number:
    """A number that two evaluations may have in common.

    Attributes:
        name: the same in every evaluation; by it numbers find their like.
        label: what it is called, with the network's name.
        needs: what of the protocol it depends on: keys, or beginnings of keys that end in a dot.
        better: "lower", "higher", or "".
    """

    name: str
    label: str
    measured: Measured
    needs: tuple[str, ...]
    better: str


@dataclass(frozen=True)
class Pair:
    """The same number of two evaluations that were made in the same way."""

    name: str
    label: str
    a: Measured
    b: Measured
    better: str

    @property
    def verdict(self) -> str:
        """Whether they differ beyond chance."""
        difference = interval_of_difference(self.a, self.b)
        if difference is None:
            return (
                "the same" if self.a.value == self.b.value else "no interval, so chance is unknown"
            )
        low, high = difference
        if low <= 0 <= high:
            return "no difference beyond chance"
        if not self.better:
            return "they differ"
        a_wins = (high < 0) == (self.better == "lower")
        return f"{'A' if a_wins else 'B'} is better"


@dataclass(frozen=True)
class Comparison:
    """What came of comparing.

    Attributes:
        pairs: the numbers that can be compared.
        refused: of each number that cannot, the keys that differ.
        differing: these keys with both values.
        only: numbers that one of the two has, and which.
        said: what differs and refuses nothing.
    """

    pairs: tuple[Pair, ...]
    refused: dict[str, tuple[str, ...]]
    differing: dict[str, tuple[Any, Any]]
    only: dict[str, str]
    said: tuple[str, ...]


def compare(a: dict[str, Any], b: dict[str, Any], varying: Sequence[str] = ()) -> Comparison:
    """Compare two evaluations as `results_folder.read` gives them.

    Args:
        varying: keys of the protocol, or their prefixes, that differ on purpose.

    Raises:
        LimnerError: one of them is not an evaluation, or is damaged.
    """
    keys = dict.fromkeys([*a["protocol"], *b["protocol"]])
    missing = "(not there)"
    differing = {
        key: (a["protocol"].get(key, missing), b["protocol"].get(key, missing))
        for key in keys
        if a["protocol"].get(key, missing) != b["protocol"].get(key, missing)
    }
    on_purpose = [k for k in differing if any(matches(k, v) for v in varying)]
    try:
        first, second = ({n.name: n for n in numbers(each)} for each in (a, b))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LimnerError(
            f"one of the two was not written by limner evaluate ({error!r}); evaluate again"
        ) from None
    pairs, refused, only = [], {}, {}
    for name in dict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            only[name] = "A" if name in first else "B"
            continue
        number = first[name]
        against = tuple(
            key
            for key in differing
            if key not in on_purpose and any(matches(key, need) for need in number.needs)
        )
        if against:
            refused[name] = against
        else:
            pairs.append(
                Pair(name, number.label, number.measured, second[name].measured, number.better)
            )
    said = [
        f"{key} differs: {differing[key][0]} and {differing[key][1]}"
        for key in differing
        if key in on_purpose or any(matches(key, need) for need in SAID)
    ]
    named = {key for against in refused.values() for key in against}
    return Comparison(
        tuple(pairs), refused, {k: differing[k] for k in differing if k in named}, only, tuple(said)
    )


def matches(key: str, need: str) -> bool:
    """A key by its name, or by the part before a dot."""
    return key == need or key.startswith(need if need.endswith(".") else f"{need}.")


def numbers(results: dict[str, Any]) -> Iterator[Number]:
    """Every number of an evaluation that can be compared."""
    loss = results.get("held_out_loss")
    if loss:
        yield _by_name("held-out loss", loss["mean"], LOSS, "lower")
    for split, found in (results.get("recall") or {}).items():
        for at in ("at_1", "at_5"):
            name = f"recall {at.replace('_', ' ')}, {split.replace('_', '-')} captions"
            yield _by_name(name, found[at], ASKED, "higher")
    for split, found in (results.get("checker") or {}).items():
        name = f"drawn fully right, {split.replace('_', '-')} captions"
        yield _by_name(name, found["all_right"], ASKED, "higher")
    for record in results.get("metrics", []):
        slot = f"{record['slot']}."
        needs = (*DRAWN, slot) if record["reference"] is None else (*DRAWN, slot, "reference.")
        # By the setting that named the network: other weights are a difference, not another number.
        name = f"{record['metric']} ({record['slot']})"
        yield Number(name, record["name"], measured(record), needs, record["better"])
    if (copied := results.get("memorisation")) and copied["ratio"]["value"] is not None:
        name = "distance to the nearest trained picture, over that of real ones"
        yield _by_name(name, copied["ratio"], ASKED, "")


def _by_name(name: str, record: dict[str, Any], needs: tuple[str, ...], better: str) -> Number:
    return Number(name, name, measured(record), needs, better)


def measured(record: dict[str, Any]) -> Measured:
    interval = record.get("interval")
    value = float("nan") if record["value"] is None else record["value"]
    return Measured(value, tuple(interval) if interval else None, record.get("interval_by", ""))


def table(found: Comparison) -> list[str]:
    """The comparison in lines of text."""
    rows = [("", "A", "B", "")]
    rows += [
        (pair.label, in_figures(pair.a), in_figures(pair.b), pair.verdict) for pair in found.pairs
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"only in {which}: {name}" for name, which in found.only.items()]
    return lines + list(found.said)


def in_figures(value: Measured) -> str:
    """0.412 (0.388 to 0.436)"""
    text = f"{value.value:.4g}"
    if value.interval is None:
        return text
    return f"{text} ({value.interval[0]:.4g} to {value.interval[1]:.4g})"


def why_refused(found: Comparison) -> str:
    """Each number that is not compared, and each key that differs, with both values."""
    lines = ["not compared, because they were made differently:"]
    lines += [f"  - {name}: {', '.join(keys)}" for name, keys in found.refused.items()]
    lines += ["differences (A, then B):"]
    lines += [f"  - {key}: {a!r}, {b!r}" for key, (a, b) in found.differing.items()]
    lines += [
        "evaluate one of the two again with the settings of the other; to measure the effect of a "
        "difference, use --varying KEY"
    ]
    return "\n".join(lines)
