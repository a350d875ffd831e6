"""What was measured of a model, as its card shows it: no number without how it was made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from limner.apps.publishing.markdown import bullets, plain, short, table
from limner.config import SamplingConfig
from limner.evaluation.splits import Split

BETTER = {"lower": "lower is better", "higher": "higher is better"}


def measured_section(
    results: dict[str, Any], evaluation: dict[str, Any], page: str | None
) -> list[str]:
    """Lines of the section "Measured quality".

    Args:
        results: results.json, what a run measured at its end; {} if there is none.
        evaluation: evaluation.json of `limner evaluate`; {} if there is none.
        page: where in the repository its page with pictures is.
    """
    said = [*_at_the_end(results), *(_evaluated(evaluation, page) if evaluation else [])]
    if not said:
        said = ["Nothing was measured with these weights.", ""]
    return ["## Measured quality", "", *said]


def how_drawn(sampling: dict[str, Any]) -> str:
    """A sentence about the settings that pictures were drawn with, and their precision."""
    low, high = sampling.get("guidance_interval", (0.0, 1.0))
    within = "" if (low, high) == (0.0, 1.0) else f" between {low:g} and {high:g} of the noise"
    said = ("scheduler_type", "num_inference_steps", "guidance_scale", "guidance_interval")
    others = "".join(
        f", {plain(key)} {plain(short(sampling[key]))}"
        for key, field in SamplingConfig.model_fields.items()
        if key not in said and key in sampling and sampling[key] != field.default
    )
    return (
        f"Drawn with {sampling['scheduler_type']}, {sampling['num_inference_steps']} steps, "
        f"guidance {sampling['guidance_scale']:g}{within}{others}, in "
        f"{sampling.get('dtype', 'float32')}."
    )


def model_index(evaluation: dict[str, Any], model: str, data_name: str) -> list[dict[str, Any]]:
    """`model-index` of the metadata, for the Hub's widgets; empty if there is no number for it.

    A metric's type is its own name: "fid" is for the one with the standard Inception network.
    """
    metrics = [
        {"type": _slug(metric["name"]), "value": metric["value"], "name": _named(metric)}
        for metric in evaluation.get("metrics", ())
        if _is_number(metric.get("value"))
    ]
    for split, found in _splits(evaluation.get("recall")):
        if _is_number(value := found["at_1"].get("value")):
            name = f"recall at 1, {split} prompts, among {found['range']}"
            kind = f"recall-at-1-{split.hyphened}"
            metrics.append({"type": kind, "value": value, "name": name})
    if not metrics:
        return []
    task = {"type": "text-to-image", "name": "Text to image"}
    dataset = {"type": _slug(data_name), "name": data_name}
    return [{"name": model, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]


# ---- at the end of the run ---------------------------------------------------------------------


def _at_the_end(results: dict[str, Any]) -> list[str]:
    from limner.evaluation.summary import sentences_of_run

    said = [plain(sentence) for sentence in sentences_of_run(results)]
    if results.get("distance"):
        said.append(f"Nearest by {plain(results['distance'])}, among {plain(results['range'])}")
    if not said:
        return []
    how = how_drawn(results["sampling"]) + " One run, one seed of training."
    return ["At the end of the run:", "", *bullets(said), how, ""]


# ---- limner evaluate ---------------------------------------------------------------------------


def _evaluated(evaluation: dict[str, Any], page: str | None) -> list[str]:
    day = str(evaluation.get("created", ""))[:10]
    lines = [f"By `limner evaluate`{f', {plain(day)}' if day else ''}:", ""]
    metrics = evaluation.get("metrics", [])
    if metrics:
        head = ("metric", "value", "95 %", "floor", "drawn / real")
        lines += table(head, [_row(metric) for metric in metrics])
        lines += [
            "The floor is what real pictures have against other real ones, as many unless it says "
            "how many.",
            "",
        ]
    lines += bullets([*_answers(evaluation), *_copies(evaluation), *_notes(evaluation)])
    lines += _losses(evaluation.get("held_out_loss"))
    lines += [
        "<details><summary>How: where two such numbers are compared, all of this must be equal"
    ]
    lines += ["</summary>", "", *table(("", ""), list(_protocol(evaluation))), "</details>", ""]
    if page is not None:
        lines += [f"[The whole evaluation, with pictures]({page}): download it to read it.", ""]
    return lines


def _row(metric: dict[str, Any]) -> tuple[str, ...]:
    floor = metric.get("floor") or {}
    better = BETTER.get(metric.get("better", ""), "")
    name = plain(metric["name"]) + (f" ({better})" if better else "")
    least = _number(floor.get("value"))
    if floor.get("counts", metric["counts"]) != metric["counts"]:
        least += f" ({_counts(floor)})"
    return name, _number(metric.get("value")), _interval(metric), least, _counts(metric)


def _counts(measured: dict[str, Any]) -> str:
    return " / ".join(f"{count:,}" for count in measured["counts"])


def _named(metric: dict[str, Any]) -> str:
    drawn, real = (f"{count:,}" for count in metric["counts"])
    return f"{metric['name']}, {drawn} drawn, {real} real"


def _answers(evaluation: dict[str, Any]) -> Iterator[str]:
    """Did prompts get what they name?"""
    for split, found in _splits(evaluation.get("recall")):
        yield (
            f"{split} prompts ({found['count']:,}): {_share(found['at_1'])} have their true "
            f"picture as the nearest, {_share(found['at_5'])} among the five nearest, of "
            f"{plain(found['range'])}"
        )
    for split, found in _splits(evaluation.get("checker")):
        parts = ", ".join(
            f"{plain(name)} {value:.0%}" for name, value in found.get("by_part", {}).items()
        )
        yield (
            f"{split} prompts ({found['count']:,}): {_share(found['all_right'])} drawn fully right"
            + (f" ({parts})" if parts else "")
        )


def _copies(evaluation: dict[str, Any]) -> Iterator[str]:
    found = evaluation.get("memorisation")
    if found:
        yield f"copies of trained pictures: {plain(found['verdict'])} ({plain(found['space'])})"


def _notes(evaluation: dict[str, Any]) -> Iterator[str]:
    """What must be known beside the numbers; what is true of several is said once."""
    about: dict[tuple[str, str], list[str]] = {}
    for metric in evaluation.get("metrics", ()):
        floor = metric.get("floor") or {}
        for what, notes in (("", metric.get("notes", ())), ("floor of ", floor.get("notes", ()))):
            for note in notes:
                about.setdefault((what, note), []).append(metric["name"])
    for (what, note), names in about.items():
        yield f"{what}{plain(', '.join(names))}: {plain(note)}"
    yield from map(plain, evaluation.get("events", ()))


def _losses(loss: dict[str, Any] | None) -> list[str]:
    if not loss or not loss.get("held_out"):
        return []
    levels = loss["held_out"]
    trained = loss.get("trained") or {}
    rows = [(level, _number(levels[level]), _number(trained.get(level))) for level in levels]
    return table(("loss at this much noise", "held-out pictures", "trained pictures"), rows)


def _protocol(evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    known = {key: short(v) for key, v in evaluation["protocol"].items() if v not in (None, "")}
    for metric in evaluation.get("metrics", ()):
        if metric.get("interval_by"):
            known[f"interval of {metric['name']}"] = metric["interval_by"]
        digest = (metric.get("network") or {}).get("weights_sha256")
        if digest and digest not in known.values():
            known[f"network of {metric['name']}, SHA-256"] = digest
    known["SHA-256 of the weights"] = evaluation["checkpoint"]["weights_sha256"]
    versions = evaluation.get("versions", {})
    known["software"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    known["device"] = str(evaluation.get("device", ""))
    for key, value in known.items():
        yield plain(key), plain(value)


# ---- text --------------------------------------------------------------------------------------


def _splits(tree: dict[str, Any] | None) -> Iterator[tuple[Split, dict[str, Any]]]:
    for split in (Split.HELD_OUT, Split.TRAINED):
        if found := (tree or {}).get(split.key):
            yield split, found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–"


def _interval(measured: dict[str, Any]) -> str:
    interval = measured.get("interval")
    return f"{_number(interval[0])} to {_number(interval[1])}" if interval else ""


def _share(measured: dict[str, Any]) -> str:
    """A share with its interval, in percent."""
    if not _is_number(measured.get("value")):
        return "–"
    interval = measured.get("interval")
    both = f" (95 %: {interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
    return f"{measured['value']:.1%}{both}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
