"""Results for the model card, each with how it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from limner.apps.publishing.markdown import short
from limner.config import SamplingConfig
from limner.evaluation.splits import Split, adjective
from limner.messages import plural
from limner.reports.gauges import is_number

BETTER = {"lower": "lower is better", "higher": "higher is better"}


def measured_at_the_end(results: dict[str, Any]) -> list[str]:
    """Sentences about the results at the end of a run.

    Args:
        results: results.json; {} if there is none.
    """
    from limner.evaluation.summary import sentences_of_run

    said = sentences_of_run(results)
    if results.get("distance"):
        said.append(f"Recall by {results['distance']}, among {results['range']}")
    return said


def evaluated(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The results in evaluation.json, for the template."""
    return {
        "day": str(evaluation.get("created", ""))[:10],
        "metrics": [_row(metric) for metric in evaluation.get("metrics", [])],
        "said": [*_answers(evaluation), *_copies(evaluation), *_notes(evaluation)],
        "losses": _losses(evaluation.get("held_out_loss")),
        "protocol": _protocol(evaluation).items(),
    }


def how_drawn(sampling: dict[str, Any]) -> str:
    """A sentence about the sampling settings and the precision."""
    low, high = sampling.get("guidance_interval", (0.0, 1.0))
    within = "" if (low, high) == (0.0, 1.0) else f" at noise levels from {low:g} to {high:g}"
    said = ("scheduler_type", "num_inference_steps", "guidance_scale", "guidance_interval")
    others = "".join(
        f", {key} {short(sampling[key])}"
        for key, field in SamplingConfig.model_fields.items()
        if key not in said and key in sampling and sampling[key] != field.default
    )
    return (
        f"Sampled with {sampling['scheduler_type']}, {(n := sampling['num_inference_steps'])} "
        f"{plural(n, 'step')}, "
        f"guidance {sampling['guidance_scale']:g}{within}{others}, in "
        f"{sampling.get('dtype', 'float32')}."
    )


def _row(metric: dict[str, Any]) -> tuple[str, ...]:
    floor = metric.get("floor") or {}
    better = BETTER.get(metric.get("better", ""), "")
    name = metric["name"] + (f" ({better})" if better else "")
    least = _number(floor.get("value"))
    if floor.get("counts", metric["counts"]) != metric["counts"]:
        least += f" ({_counts(floor)})"
    return name, _number(metric.get("value")), _interval(metric), least, _counts(metric)


def _counts(measured: dict[str, Any]) -> str:
    return " / ".join(f"{count:,}" for count in measured["counts"])


def _answers(evaluation: dict[str, Any]) -> Iterator[str]:
    """Prompt following."""
    for split, found in splits(evaluation.get("recall")):
        yield (
            f"{adjective(split)} prompts ({found['count']:,}): recall@1 {_share(found['at_1'])}, "
            f"recall@5 {_share(found['at_5'])}, among {found['range']}"
        )
    for split, found in splits(evaluation.get("checker")):
        parts = ", ".join(f"{name} {value:.0%}" for name, value in found.get("by_part", {}).items())
        yield (
            f"{adjective(split)} prompts ({found['count']:,}): {_share(found['all_right'])} fully "
            "correct" + (f" ({parts})" if parts else "")
        )


def _copies(evaluation: dict[str, Any]) -> Iterator[str]:
    found = evaluation.get("memorisation")
    if found:
        yield f"memorisation: {found['verdict']} ({found['space']})"


def _notes(evaluation: dict[str, Any]) -> Iterator[str]:
    """Notes on the results; a note that applies to several metrics appears once."""
    about: dict[tuple[str, str], list[str]] = {}
    for metric in evaluation.get("metrics", ()):
        floor = metric.get("floor") or {}
        of_floor = "real-vs-real baseline of ", floor.get("notes", ())
        for what, notes in (("", metric.get("notes", ())), of_floor):
            for note in notes:
                about.setdefault((what, note), []).append(metric["name"])
    for (what, note), names in about.items():
        yield f"{what}{', '.join(names)}: {note}"
    yield from evaluation.get("events", ())


def _losses(loss: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    if not loss or not loss.get("held_out"):
        return []
    levels = loss["held_out"]
    trained = loss.get("trained") or {}
    return [(level, _number(levels[level]), _number(trained.get(level))) for level in levels]


def _protocol(evaluation: dict[str, Any]) -> dict[str, str]:
    known = {key: short(v) for key, v in evaluation["protocol"].items() if v not in (None, "")}
    for metric in evaluation.get("metrics", ()):
        if metric.get("interval_by"):
            known[f"confidence interval of {metric['name']}"] = metric["interval_by"]
        digest = (metric.get("network") or {}).get("weights_sha256")
        if digest and digest not in known.values():
            known[f"feature extractor of {metric['name']}, SHA-256"] = digest
    known["weights, SHA-256"] = evaluation["checkpoint"]["weights_sha256"]
    versions = evaluation.get("versions", {})
    known["software"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    known["device"] = str(evaluation.get("device", ""))
    return known


# ---- text --------------------------------------------------------------------------------------


def splits(tree: dict[str, Any] | None) -> Iterator[tuple[Split, dict[str, Any]]]:
    for split in (Split.HELD_OUT, Split.TRAINED):
        if found := (tree or {}).get(split.key):
            yield split, found


def _number(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else "–"


def _interval(measured: dict[str, Any]) -> str:
    interval = measured.get("interval")
    return f"{_number(interval[0])} to {_number(interval[1])}" if interval else ""


def _share(measured: dict[str, Any]) -> str:
    """A proportion with its confidence interval, in percent."""
    if not is_number(measured.get("value")):
        return "–"
    interval = measured.get("interval")
    both = f" (95% CI {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
    return f"{measured['value']:.1%}{both}"
