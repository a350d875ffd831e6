"""Comparison of two evaluations, for each number that was measured in the same way.

Which settings have to match depends on the number: a held-out loss does not depend on the sampler,
and different Inception weights do not affect the CLIP metrics. The model, its size, its training,
and the checkpoint may differ: they are what is compared, and not part of the protocol.

Guidance, steps, and all other sampler settings have to match, since more steps alone improve
quality. To compare samplers, name the keys in `varying`. Different versions of torch or Limner are
reported but not refused: torch only changes rounding, and if a new Limner measures something
differently, `method` changes. The device may differ: in float32 it only changes rounding, and
`drawn.dtype` covers the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limner.errors import LimnerError
from limner.evaluation.splits import adjective
from limner.metrics.interval import Measured, interval_of_difference

DRAWN = ("method", "drawn.", "sampling.")
ASKED = ("method", "asked.", "sampling.", "drawn.resolution", "drawn.dtype", "data.")
"""For recall, the checker, and memorisation: they use other images than the distances, and compare
with all images of the data set."""
LOSS = ("method", "loss.")
SAID = ("software.",)


@dataclass(frozen=True)
class Number:
    """A number of an evaluation.

    Attributes:
        name: identifies the number across evaluations.
        label: display name, with the name of the feature extractor.
        needs: the protocol keys that it depends on, or their prefixes, ending in a dot.
        better: "lower", "higher", or "".
    """

    name: str
    label: str
    measured: Measured
    needs: tuple[str, ...]
    better: str


@dataclass(frozen=True)
class Pair:
    """The same number in two comparable evaluations."""

    name: str
    label: str
    a: Measured
    b: Measured
    better: str

    @property
    def verdict(self) -> str:
        """Whether the difference is significant."""
        difference = interval_of_difference(self.a, self.b)
        if difference is None:
            return (
                "equal"
                if self.a.value == self.b.value
                else "no confidence interval, so significance is unknown"
            )
        low, high = difference
        if low <= 0 <= high:
            return "no significant difference"
        if not self.better:
            return "significantly different"
        a_wins = (high < 0) == (self.better == "lower")
        return f"{'A' if a_wins else 'B'} is better"


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        pairs: the comparable numbers.
        refused: the keys that differ, for each number that is not comparable.
        differing: these keys with both values.
        only: numbers that only one of the two has, and which.
        said: differences that do not prevent a comparison.
    """

    pairs: tuple[Pair, ...]
    refused: dict[str, tuple[str, ...]]
    differing: dict[str, tuple[Any, Any]]
    only: dict[str, str]
    said: tuple[str, ...]


def compare(a: dict[str, Any], b: dict[str, Any], varying: Sequence[str] = ()) -> Comparison:
    """Compare two evaluations as `results_folder.read` gives them.

    Args:
        varying: protocol keys, or their prefixes, that differ on purpose.

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
    """Whether `need` is the key or its prefix before a dot."""
    return key == need or key.startswith(need if need.endswith(".") else f"{need}.")


def numbers(results: dict[str, Any]) -> Iterator[Number]:
    """The numbers of an evaluation that can be compared."""
    loss = results.get("held_out_loss")
    if loss:
        yield _by_name("held-out loss", loss["mean"], LOSS, "lower")
    for split, found in (results.get("recall") or {}).items():
        for at in ("at_1", "at_5"):
            name = f"recall{at.replace('at_', '@')}, {adjective(split)} captions"
            yield _by_name(name, found[at], ASKED, "higher")
    for split, found in (results.get("checker") or {}).items():
        name = f"fully correct, {adjective(split)} captions"
        yield _by_name(name, found["all_right"], ASKED, "higher")
    for record in results.get("metrics", []):
        slot = f"{record['slot']}."
        needs = (*DRAWN, slot) if record["reference"] is None else (*DRAWN, slot, "reference.")
        # Named by the setting, so that other weights are a difference and not another number.
        name = f"{record['metric']} ({record['slot']})"
        yield Number(name, record["name"], measured(record), needs, record["better"])
    if (copied := results.get("memorisation")) and copied["ratio"]["value"] is not None:
        name = "distance to the nearest training image, relative to held-out images"
        yield _by_name(name, copied["ratio"], ASKED, "")


def _by_name(name: str, record: dict[str, Any], needs: tuple[str, ...], better: str) -> Number:
    return Number(name, name, measured(record), needs, better)


def measured(record: dict[str, Any]) -> Measured:
    interval = record.get("interval")
    value = float("nan") if record["value"] is None else record["value"]
    return Measured(value, tuple(interval) if interval else None, record.get("interval_by", ""))


def table(found: Comparison) -> list[str]:
    """The comparison as lines of text."""
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
    """Each number that is not comparable, and each key that differs, with both values."""
    lines = ["not comparable, because they were measured differently:"]
    lines += [f"  - {name}: {', '.join(keys)}" for name, keys in found.refused.items()]
    lines += ["differences (A, then B):"]
    lines += [f"  - {key}: {a!r}, {b!r}" for key, (a, b) in found.differing.items()]
    lines += [
        "evaluate one of the two again with the settings of the other; to measure the effect of a "
        "difference, use --varying KEY"
    ]
    return "\n".join(lines)
