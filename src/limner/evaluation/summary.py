"""Results as sentences, for `limner evaluate` and for the end of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from limner.evaluation.speckle import in_words as speckle_in_words
from limner.evaluation.splits import Split, adjective
from limner.messages import plural

GAP, SPREAD = 1.5, 0.8
"""Ratio of the losses from which a run is said to have memorised, and the standard deviation of the
loss among pictures compared with its mean (0.66 and 0.78 in the two evaluations of docs/runs)."""


def sentences(results: dict[str, Any]) -> list[str]:
    """The main results, one line each; the page and the file have the details."""
    said = []
    if loss := results["held_out_loss"]:
        said.append(
            f"held-out loss {figure(loss['mean'])} ({_images(loss['count'])}); training loss "
            f"{figure(loss['trained_mean'])} ({_images(loss['trained_count'])})"
        )
    for split, found in (results["recall"] or {}).items():
        at_1, at_5, count = found["at_1"]["value"], found["at_5"]["value"], found["count"]
        said.append(
            f"{adjective(split)} captions: recall@1 {at_1:.1%}{between(found['at_1'])} of "
            f"{count:,}, among {found['range']}; recall@5 {at_5:.1%}"
        )
    for split, found in (results["checker"] or {}).items():
        right = found["all_right"]
        said.append(
            f"{adjective(split)} captions: {right['value']:.1%}{between(right)} of "
            f"{found['count']:,} fully correct ({parts(found)})"
        )
    for record in results["metrics"]:
        drawn, real = record["counts"]
        counts = f"{drawn:,} generated" + ("" if real is None else f", {real:,} real")
        counts += f" {plural(drawn if real is None else real, 'image')}"
        floor = record["floor"]
        beside = ""
        if floor:
            beside = f"; real-vs-real baseline {floor['value']:.4g}"
            if floor["counts"] != record["counts"]:
                beside += f" on {floor['counts'][0]:,} and {floor['counts'][1]:,}"
        said.append(f"{record['name']}: {figure(record)} ({counts}{beside})")
    speckle = results.get("flat_region_std")
    if speckle and not speckle["visible"]:  # otherwise it is one of the events
        said.append(speckle_in_words(speckle))
    if copied := results["memorisation"]:
        said.append(copied["verdict"])
    return said + list(results["events"])


def sentences_of_run(results: dict[str, Any]) -> list[str]:
    """The main results in results.json, one line each."""
    said = []
    if left_out := [
        f"{n:,} of {of:,} {adjective(split)} {'prompts' if split == Split.FREE else 'captions'}"
        for split, (n, of) in results.get("drawn", {}).items()
        if n < of
    ]:
        said.append(f"{_what_of(results)} {' and '.join(left_out)}, evenly spread")
    for split, found in results.get("recall", {}).items():
        right = round(found["at_1"] * found["count"])
        said.append(
            f"{adjective(split)} prompts: recall@1 {found['at_1']:.1%} ({right} of "
            f"{found['count']}); recall@5 {found['at_5']:.1%}"
        )
    for split, found in results.get("checker", {}).items():
        said.append(
            f"{adjective(split)} prompts: {found['all_right']:.1%} of {found['count']} fully "
            f"correct ({parts(found)})"
        )
    if speckle := results.get("flat_region_std"):
        said.append(speckle_in_words(speckle))
    return said


def _images(count: int) -> str:
    return f"{count:,} {plural(count, 'image')}"


def _what_of(results: dict[str, Any]) -> str:
    return "recall of" if "recall" in results else "checked" if "checker" in results else "drawn:"


def how_to_measure_all(results: dict[str, Any], run_folder: Path) -> list[str]:
    """What to do if only a part of the captions was measured."""
    if "drawn" not in results:
        return []
    return [f"limner report {run_folder.as_posix()} --all measures every caption"]


def learned_by_heart(results: dict[str, Any]) -> list[str]:
    """What it means that a run ended with a much lower loss on trained pictures than on held-out
    ones, if it did, and if so few pictures can show it."""
    loss = results.get("losses")
    if not loss:
        return []
    ratio = loss["held_out"] / max(loss["trained"], 1e-12)
    noise = SPREAD * math.sqrt(1 / loss["held_out_count"] + 1 / loss["trained_count"])
    if ratio < max(GAP, 1 + 2 * noise):
        return []
    return [
        f"memorised: the loss is {loss['trained']:.3f} on trained pictures and "
        f"{loss['held_out']:.3f} on held-out ones, so the model draws what it has seen much better "
        "than anything else, and a caption alike with any seed. This is usual with few pictures: "
        "more pictures, and several of each thing, help most, then model.dropout or a shorter run"
    ]


def parts(checked: dict[str, Any]) -> str:
    """colour 97%, shape 95%"""
    return ", ".join(f"{part} {share:.0%}" for part, share in checked["by_part"].items())


def figure(measured: dict[str, Any]) -> str:
    """0.412 [0.388 to 0.436]"""
    if measured["value"] is None:
        return "?"
    text = f"{measured['value']:.4g}"
    if interval := measured["interval"]:
        return f"{text} [{interval[0]:.4g} to {interval[1]:.4g}]"
    return text if measured.get("std") is None else f"{text} ± {measured['std']:.2g}"


def between(share: dict[str, Any]) -> str:
    """' [88% to 99%]'"""
    interval = share["interval"]
    return f" [{interval[0]:.0%} to {interval[1]:.0%}]" if interval else ""
