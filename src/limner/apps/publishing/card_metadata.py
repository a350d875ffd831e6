"""The metadata of a model card, for the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from limner.apps.publishing.card_measured import splits
from limner.config import Config
from limner.evaluation.splits import adjective
from limner.reports.gauges import is_number


def metadata(
    repo: str,
    config: Config,
    license: str | None,
    base_model: str | None,
    datasets: list[str],
    evaluation: dict[str, Any],
    data_name: str,
) -> str:
    """The YAML front matter that the Hub indexes and displays.

    Args:
        base_model: Hub id of the base model.
        datasets: Hub ids of the training data sets.
        evaluation: evaluation.json; {} if there is none.
        data_name: public name of the data set of the evaluation.
    """
    languages = {"emoji": list(config.data.languages), "shapes": ["en"]}
    tags = ["text-to-image", "diffusers", "diffusion-transformer", "limner"]
    results = list(eval_results(evaluation, data_name))
    data = ModelCardData(
        license=license,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*tags, config.model.architecture],
        language=languages.get(config.data.dataset_name or ""),
        datasets=datasets or None,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    # Not `to_yaml`, which folds long lines: the search for private names would miss them.
    return yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True, width=10**6)


def eval_results(evaluation: dict[str, Any], data_name: str) -> Iterator[EvalResult]:
    """Results for the Hub's widgets.

    The type of a metric is its own name: "fid" is reserved for the standard Inception network.
    """

    def measured(kind: str, name: str, value: float) -> EvalResult:
        return EvalResult(
            task_type="text-to-image",
            task_name="Text to image",
            dataset_type=_slug(data_name),
            dataset_name=data_name,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )

    for metric in evaluation.get("metrics", ()):
        if is_number(value := metric.get("value")):
            drawn, real = (f"{count:,}" for count in metric["counts"])
            name = f"{metric['name']}, {drawn} generated, {real} real"
            yield measured(_slug(metric["name"]), name, value)
    for split, found in splits(evaluation.get("recall")):
        if is_number(value := found["at_1"].get("value")):
            name = f"recall@1, {adjective(split)} prompts, among {found['range']}"
            yield measured(f"recall-at-1-{split.hyphened}", name, value)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
