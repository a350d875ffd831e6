"""The model card, generated from the run.

It claims nothing that the run does not contain, and names what is unknown.
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
    "[CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/). Changes made: rasterised on white. "
    "Generated images imitate it: give the same attribution when you share them. "
    "The names come from Unicode CLDR (Unicode License v3) through the Python package `emoji`."
)
SHAPES = plain("The images are rendered by Limner (Apache-2.0) and contain no third-party artwork.")
BUILT_IN = {"emoji": TWEMOJI, "shapes": SHAPES}
"""Attribution of the built-in data sets."""
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
        "distill.fingerprint",
    )
)
"""Settings about paths and monitoring, which do not affect the model."""


@dataclass(frozen=True)
class Sample:
    """A sample image on the card."""

    file: str
    """Path in the repository."""
    prompt: str
    seed: int
    split: str
    """"trained", "held out", or "free": where the prompt comes from."""
    drawn: dict[str, Any]
    """Sampling settings and precision."""


@dataclass(frozen=True)
class Facts:
    """The inputs of the card."""

    repo: str
    """Id of the repository, `owner/name`."""
    config: Config
    parameters: int
    step: int
    images: int
    seconds: float
    dtype: str
    """Dtype of the weights."""
    samples: Sequence[Sample]
    results: dict[str, Any]
    """results.json of the run, if it belongs to these weights."""
    evaluation: dict[str, Any]
    """evaluation.json, if it belongs to these weights."""
    page: str | None
    """Path of the evaluation page in the repository."""
    license: str | None
    data_name: str | None
    data_license: str | None
    lineage: Lineage | None = None
    """What the model was trained from; None: taken from the configuration."""
    teacher: str | None = None
    """Path in the repository of the model that a distilled one was made from."""
    space: str | None = None
    """Id of the Space with the model's web page."""


def model_card(facts: Facts) -> str:
    """The README.md of the repository, with the metadata for the Hub."""
    return templates().get_template("model_card.md").render(_values_of(public_facts(facts)))


def public_facts(facts: Facts) -> Facts:
    """The same without private names."""
    name = public_name(facts.config, facts.data_name)
    lineage = facts.lineage or lineage_of_config(facts.config)
    return replace(
        facts,
        results=public_results(facts.results, facts.config, name),
        lineage=lineage.said(facts.data_name, facts.data_license).public(),
    )


def _values_of(facts: Facts) -> dict[str, Any]:
    """The context of the template model_card.md."""
    config, results = facts.config, facts.results
    sets = [data.name for data in _lineage(facts).data if _is_on_the_hub(data, facts)]
    before = (one.model for one in _lineage(facts).models_before())
    bases = [model for model in before if model and model != facts.repo]
    measured_on = (facts.evaluation.get("dataset") or {}).get("name")
    # Letters, spaces, and commas need no escaping in any shell or in Python.
    simple = (
        s.prompt for s in facts.samples if s.prompt.replace(" ", "a").replace(",", "a").isalpha()
    )
    return {
        "metadata": metadata(
            facts.repo,
            config,
            license_of(facts),
            bases[0] if bases else None,
            [name for name in sets if name],
            facts.evaluation,
            facts.data_name or measured_on or public_name(config),
        ),
        "repo": facts.repo,
        "distilled": config.model.flow_map,
        "guidance_range": config.distill.guidance_range,
        "teacher": facts.teacher,
        "space": facts.space,
        "name": facts.repo.rpartition("/")[2],
        "parameters": f"{facts.parameters:,}",
        "side": config.data.image_size,
        "sizes": _sizes(facts),
        "trained": _trained(facts),
        "samples": facts.samples,
        "how_drawn": " ".join(dict.fromkeys(how_drawn(sample.drawn) for sample in facts.samples)),
        "prompt": next(simple, "a red apple"),
        "recipe": _recipe(facts),
        "data": about_data(facts),
        "at_the_end": measured_at_the_end(results),
        "results_drawn": how_drawn(results["sampling"]) if results.get("sampling") else "",
        "evaluation": evaluated(facts.evaluation) if facts.evaluation else None,
        "page": facts.page,
    }


def license_that_fits(lineage: Lineage) -> str | None:
    """The default licence of a model: that of the built-in data sets, if it and its base models
    were trained on built-in data sets with the same licence only."""
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
        sets = plain(facts.data_name)  # the publisher's name replaces the known one
    if lineage.base is None:
        return Markdown(f"trained from scratch with Limner on {sets}")
    base = lineage.base.model
    begun = _shown_model(base, facts) if base else "a model that is not public"
    if lineage.method == "distilled":
        return Markdown(
            f"distilled with Limner from {begun}, to draw in few steps, with captions of {sets}"
        )
    rank, how = facts.config.lora.rank, ""
    if rank or lineage.method == "lora":
        how = f", with LoRA{f' of rank {rank}' if rank else ''}, merged into the weights"
    return Markdown(f"fine-tuned with Limner from {begun} on {sets}{how}")


def _sizes(facts: Facts) -> str:
    """The training sizes, width × height."""
    side, buckets = facts.config.data.image_size, facts.config.data.buckets
    if not isinstance(buckets, tuple):
        return f"{side} × {side}"
    return ", ".join(f"{width} × {height}" for height, width in buckets)


def _lineage(facts: Facts) -> Lineage:
    assert facts.lineage is not None, "model_card fills it in"
    return facts.lineage


def license_of(facts: Facts) -> str | None:
    """The publisher's choice, or the default; of `public_facts`."""
    return facts.license or license_that_fits(_lineage(facts))


def _is_on_the_hub(data: LearnedFrom, facts: Facts) -> bool:
    return data.name is not None and data.name != facts.data_name and is_hub_id(data.name)


def _shown_set(data: LearnedFrom, facts: Facts) -> str:
    """The public name of a data set, with a link if it is on the Hub."""
    if data.name is None:
        return A_PRIVATE_SET
    if data.name in BUILT_IN:
        return f"Limner's built-in {data.name}"
    shown = plain(data.name)
    return f"[{shown}]({HUB}/datasets/{data.name})" if _is_on_the_hub(data, facts) else shown


def _shown_model(model: str, facts: Facts) -> str:
    if model == facts.repo and facts.teacher:
        return Markdown(f"`{facts.teacher}`")
    return f"[{plain(model)}]({HUB}/{model})" if is_hub_id(model) else plain(model)


def _recipe(facts: Facts) -> list[tuple[str, str]]:
    config, results = facts.config, facts.results
    where = f" on {results['device']}" if results.get("device") else ""
    versions = results.get("versions", {})
    rows = [
        ("parameters", f"{facts.parameters:,}, published in {facts.dtype}"),
        ("steps", f"{facts.step:,}"),
        ("images seen", f"{facts.images:,}"),
        ("training time", f"{format_duration(facts.seconds)}{where}"),
        ("software", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("autoencoder", _part(config.vae.pretrained_model_name, "vae")),
        (
            "text encoder",
            _part(config.text_encoder.pretrained_model_name, "text_encoder")
            or "trained with the model",
        ),
    ]
    rows += [(Markdown(f"`{key}`"), Markdown(f"`{v}`")) for key, v in changed_settings(config)]
    return [row for row in rows if row[1]]


def changed_settings(config: Config) -> Iterator[tuple[str, str]]:
    """The settings that differ from Limner's defaults, as (section.key, value)."""
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
    """A pretrained component by its Hub id, or the folder in this repository that contains it."""
    if not name:
        return ""
    return name if is_hub_id(name) else Markdown(f"in `{folder}/`")


def about_data(facts: Facts) -> list[Markdown]:
    """Paragraphs about the training data and the licences; of `public_facts`."""
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
            said.append(f"The images and captions are those of {shown}; see there for the licence.")
        else:
            which = "the images and captions"
            if sum(one.name not in BUILT_IN for one in set(lineage.data)) > 1:
                which = f"the images and captions of {shown}"
            said.append(
                f"The publisher has not stated the source or the licence of {which}: ask before "
                "you use the model beyond testing it."
            )
    said = list(dict.fromkeys(said))
    said += _before(facts)
    if license_of(facts) is None:
        said.append("The publisher has not chosen a licence for the model.")
    return [Markdown(paragraph) for paragraph in said]


def _before(facts: Facts) -> list[str]:
    """The base models, and the attribution that they require."""

    def shown(data: LearnedFrom) -> str:
        name = _shown_set(data, facts)
        return f"{name} (licence: {plain(data.license)})" if data.license else name

    lineage = _lineage(facts)
    said = before_in_words(lineage, lambda model: _shown_model(model, facts), shown, plain)
    named = {data.name for data in lineage.data}
    for before in lineage.models_before():
        for name in [data.name for data in before.data if data.name not in named]:
            named.add(name)
            if name in BUILT_IN:
                said.append(BUILT_IN[name])
    return said
