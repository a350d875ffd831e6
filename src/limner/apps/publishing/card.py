"""The model card: what a stranger needs to judge and use a model, made from its run alone.

Nothing is claimed that the run does not hold; what nobody said is said to be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limner.apps.publishing.card_measured import evaluated, how_drawn, measured_at_the_end
from limner.apps.publishing.card_metadata import metadata
from limner.apps.publishing.markdown import Markdown, plain, short, templates
from limner.apps.publishing.public import (
    NAMES_OF_A_SET,
    is_public_set,
    public_name,
    public_results,
)
from limner.checkpoint.lineage import (
    A_PRIVATE_SET,
    LICENSES,
    LearnedFrom,
    Lineage,
    before_in_words,
    lineage_of_config,
    sets_in_words,
)
from limner.config import Config, load_config
from limner.console import format_duration
from limner.redaction import is_hub_id

TWEMOJI = Markdown(
    "The artwork is [Twemoji](https://github.com/jdecked/twemoji), copyright 2020 Twitter, Inc and "
    "other contributors, later versions copyright jdecked/twemoji contributors, licensed under "
    "[CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/). Changes made: drawn in pixels on "
    "white. What the model draws imitates it: give the same attribution when you share pictures. "
    "The names come from Unicode CLDR (Unicode License v3) through the Python package `emoji`."
)
SHAPES = plain(
    "They are drawn by a program of Limner's (Apache-2.0); no artwork of others is in them."
)
BUILT_IN = {"emoji": TWEMOJI, "shapes": SHAPES}
"""The data sets that come with Limner: where they are from."""
HUB = "https://huggingface.co"
NOT_THE_RECIPE = frozenset(
    (
        *("data.dataset_path", "data.memory_mb", "cache.folder", "training.output_dir"),
        *("data.allowed_paths", "data.image_column", "data.caption_column"),
        *("training.init_from", "training.run_name", "training.tracker_project"),
        *("training.preview_prompts", "training.preview_steps", "training.save_steps"),
        *("training.logging_steps", "training.heldout_steps", "training.heldout_pictures"),
        *("training.checkpoints_total_limit", "training.device", "training.num_workers"),
        *("training.prefetch_factor", "training.trackers", "training.compile_model"),
        *("training.resume", "training.save_errors", "vae.fingerprint"),
        "training.save_every_n_epochs",
        "text_encoder.fingerprint",
    )
)
"""Settings that say where things were, or how they were watched, and nothing about the model."""


@dataclass(frozen=True)
class Sample:
    """A picture of the card."""

    file: str
    """Path in the repository."""
    prompt: str
    seed: int
    split: str
    """"trained", "held out", or "free": where the prompt is from."""
    drawn: dict[str, Any]
    """With which solver, steps, guidance, and precision."""


@dataclass(frozen=True)
class Facts:
    """What the card is made from."""

    repo: str
    """Id of the repository, `owner/name`."""
    config: Config
    parameters: int
    step: int
    images: int
    seconds: float
    dtype: str
    """Of the weights."""
    samples: Sequence[Sample]
    results: dict[str, Any]
    """results.json of the run, if it is about these weights."""
    evaluation: dict[str, Any]
    """evaluation.json, likewise."""
    page: str | None
    """Where in the repository the page of that evaluation is."""
    license: str | None
    data_name: str | None
    data_license: str | None
    lineage: Lineage | None = None
    """What the model began from; None: what the configuration says."""


def model_card(facts: Facts) -> str:
    """README.md of the repository, with the metadata that the Hub reads."""
    name = public_name(facts.config, facts.data_name)
    lineage = facts.lineage or lineage_of_config(facts.config)
    facts = replace(
        facts,
        results=public_results(facts.results, facts.config, name),
        lineage=lineage.said(facts.data_name, facts.data_license).public(),
    )
    return templates().get_template("model_card.md").render(_values_of(facts))


def _values_of(facts: Facts) -> dict[str, Any]:
    """What the template model_card.md shows."""
    config, results = facts.config, facts.results
    sets = [data.name for data in _lineage(facts).data if _is_on_the_hub(data, facts)]
    bases = [before.model for before in _lineage(facts).models_before() if before.model]
    measured_on = (facts.evaluation.get("dataset") or {}).get("name")
    # Every shell and Python take letters, spaces, and commas as they are.
    simple = (
        s.prompt for s in facts.samples if s.prompt.replace(" ", "a").replace(",", "a").isalpha()
    )
    return {
        "metadata": metadata(
            facts.repo,
            config,
            _license(facts),
            bases[0] if bases else None,
            [name for name in sets if name],
            facts.evaluation,
            facts.data_name or measured_on or public_name(config),
        ),
        "repo": facts.repo,
        "name": facts.repo.rpartition("/")[2],
        "parameters": f"{facts.parameters:,}",
        "side": config.data.image_size,
        "sizes": _sizes(facts),
        "trained": _trained(facts),
        "samples": facts.samples,
        "how_drawn": " ".join(dict.fromkeys(how_drawn(sample.drawn) for sample in facts.samples)),
        "prompt": next(simple, "a red apple"),
        "recipe": _recipe(facts),
        "data": _data(facts),
        "at_the_end": measured_at_the_end(results),
        "results_drawn": how_drawn(results["sampling"]) if results.get("sampling") else "",
        "evaluation": evaluated(facts.evaluation) if facts.evaluation else None,
        "page": facts.page,
    }


def license_that_fits(lineage: Lineage) -> str | None:
    """The licence of a model if its publisher chooses none: that of the built-in data set, if all
    that it and the models before it learned from are under one and the same."""
    models = (lineage, *lineage.models_before())
    sets = [data for one in models for data in one.data]
    if not all(one.complete and one.data for one in models):
        return None
    if any(data.name not in LICENSES for data in sets):
        return None
    found = {data.license for data in sets} | {one.license for one in models if one.license}
    return found.pop() if len(found) == 1 else None


def _trained(facts: Facts) -> Markdown:
    lineage = _lineage(facts)
    sets = sets_in_words(
        f"its built-in {data.name}" if data.name in BUILT_IN else _shown_set(data, facts)
        for data in lineage.data
    )
    if facts.data_name and all(data.name != facts.data_name for data in lineage.data):
        sets = plain(facts.data_name)  # another name for what has one
    if lineage.base is None:
        return Markdown(f"trained from scratch with Limner on {sets}")
    base = lineage.base.model
    begun = _shown_model(base) if base else "a model that is not public"
    if lineage.method == "distilled":
        return Markdown(
            f"distilled with Limner from {begun}, to draw in few steps, with captions of {sets}"
        )
    rank, how = facts.config.lora.rank, ""
    if rank or lineage.method == "lora":
        how = f", by LoRA{f' of rank {rank}' if rank else ''}, merged into the weights"
    return Markdown(f"fine-tuned with Limner on {sets}{how}; it began from {begun}")


def _sizes(facts: Facts) -> str:
    """Width × height of what it was trained at."""
    side, buckets = facts.config.data.image_size, facts.config.data.buckets
    if not isinstance(buckets, tuple):
        return f"{side} × {side}"
    return ", ".join(f"{width} × {height}" for height, width in buckets)


def _lineage(facts: Facts) -> Lineage:
    assert facts.lineage is not None, "model_card fills it in"
    return facts.lineage


def _license(facts: Facts) -> str | None:
    """What the publisher chose, or what fits."""
    return facts.license or license_that_fits(_lineage(facts))


def _is_on_the_hub(data: LearnedFrom, facts: Facts) -> bool:
    return data.name is not None and data.name != facts.data_name and is_hub_id(data.name)


def _shown_set(data: LearnedFrom, facts: Facts) -> str:
    """A data set's public name, with a link if it is on the Hub."""
    if data.name is None:
        return A_PRIVATE_SET
    if data.name in BUILT_IN:
        return f"Limner's built-in {data.name}"
    shown = plain(data.name)
    return f"[{shown}]({HUB}/datasets/{data.name})" if _is_on_the_hub(data, facts) else shown


def _shown_model(model: str) -> str:
    return f"[{plain(model)}]({HUB}/{model})" if is_hub_id(model) else plain(model)


def _recipe(facts: Facts) -> list[tuple[str, str]]:
    config, results = facts.config, facts.results
    where = f" on {results['device']}" if results.get("device") else ""
    versions = results.get("versions", {})
    rows = [
        ("parameters", f"{facts.parameters:,}, published in {facts.dtype}"),
        ("updates", f"{facts.step:,}"),
        ("pictures seen", f"{facts.images:,}"),
        ("training time", f"{format_duration(facts.seconds)}{where}"),
        ("software", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("autoencoder", _part(config.vae.pretrained_model_name, "vae")),
        (
            "text encoder",
            _part(config.text_encoder.pretrained_model_name, "text_encoder") or "trained along",
        ),
    ]
    rows += [(Markdown(f"`{key}`"), Markdown(f"`{v}`")) for key, v in changed_settings(config)]
    return [row for row in rows if row[1]]


def changed_settings(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that are not as Limner chooses them by itself, as (section.key, value)."""
    default = load_config(None)
    private = () if is_public_set(config) else [f"data.{key}" for key in NAMES_OF_A_SET]
    for section in Config.model_fields:
        for key, value in getattr(config, section):
            name = f"{section}.{key}"
            if (
                section == "evaluation"
                or name in NOT_THE_RECIPE
                or name in private
                or value == getattr(getattr(default, section), key)
            ):
                continue
            if key != "pretrained_model_name" or is_hub_id(value):
                yield name, short(value)


def _part(name: str | None, folder: str) -> str:
    """A pretrained part by its Hub id; one from a folder on somebody's machine lies here, too."""
    if not name:
        return ""
    return name if is_hub_id(name) else Markdown(f"in `{folder}/`")


def _data(facts: Facts) -> list[Markdown]:
    """Paragraphs: what it learned from, and under which licences that and the model are."""
    lineage = _lineage(facts)
    about = facts.results.get("dataset") or facts.evaluation.get("dataset") or {}
    known = about.get("description", "")
    said: list[str] = [plain(known)] if known else []
    for data in lineage.data:
        shown = _shown_set(data, facts)
        if data.name in BUILT_IN:
            said.append(BUILT_IN[data.name])
        elif data.license:
            said.append(f"{shown[:1].upper()}{shown[1:]}, licence: {plain(data.license)}.")
        elif _is_on_the_hub(data, facts):
            said.append(f"The pictures and captions are those of {shown}; their licence is there.")
        else:
            which = "these pictures and captions"
            if sum(one.name not in BUILT_IN for one in set(lineage.data)) > 1:
                which = f"the pictures and captions of {shown}"
            said.append(
                f"The publisher has not said where {which} are from, or under "
                "which licence they are: ask before you use the model for more than trying it."
            )
    said = list(dict.fromkeys(said))
    said += _before(facts)
    if _license(facts) is None:
        said.append("No licence was chosen for the model itself.")
    return [Markdown(paragraph) for paragraph in said]


def _before(facts: Facts) -> list[str]:
    """Of the models before this one: which they are, and to whom the same credit is due."""

    def shown(data: LearnedFrom) -> str:
        name = _shown_set(data, facts)
        return f"{name} (licence: {plain(data.license)})" if data.license else name

    lineage = _lineage(facts)
    said = before_in_words(lineage, _shown_model, shown, plain)
    named = {data.name for data in lineage.data}
    for before in lineage.models_before():
        for name in [data.name for data in before.data if data.name not in named]:
            named.add(name)
            if name in BUILT_IN:
                said.append(BUILT_IN[name])
    return said
