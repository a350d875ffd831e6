"""The model card: what a stranger needs to judge and use a model, made from its run alone.

Nothing is claimed that the run does not hold; what nobody said is said to be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from limner.apps.publishing.card_measured import how_drawn, measured_section, model_index
from limner.apps.publishing.markdown import bullets, paragraphs, plain, short, table
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

TWEMOJI = (
    "The artwork is [Twemoji](https://github.com/jdecked/twemoji), copyright 2020 Twitter, Inc and "
    "other contributors, later versions copyright jdecked/twemoji contributors, licensed under "
    "[CC-BY 4.0](https://creativecommons.org/licenses/by/4.0/). Changes made: drawn in pixels on "
    "white. What the model draws imitates it: give the same attribution when you share pictures. "
    "The names come from Unicode CLDR (Unicode License v3) through the Python package `emoji`."
)
SHAPES = "They are drawn by a program of Limner's (Apache-2.0); no artwork of others is in them."
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
ACROSS = 4  # pictures side by side


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
    sections = (
        _metadata(facts),
        _headline(facts),
        _pictures(facts),
        _use(facts),
        _recipe(facts),
        _data(facts),
        _measured(facts),
        _limits(facts),
    )
    return "\n".join(section for section in sections if section)


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


# ---- sections ----------------------------------------------------------------------------------


def _metadata(facts: Facts) -> str:
    data = facts.config.data
    tags = ["text-to-image", "diffusers", "diffusion-transformer", "limner"]
    lineage = _lineage(facts)
    bases = [before.model for before in lineage.models_before() if before.model]
    values: dict[str, Any] = {
        "license": _license(facts),
        "base_model": bases[0] if bases else None,
        "base_model_relation": "finetune" if bases else None,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [*tags, facts.config.model.architecture],
    }
    if data.dataset_name == "emoji":
        values["language"] = list(data.languages)
    elif data.dataset_name == "shapes":
        values["language"] = ["en"]
    sets = [one.name for one in lineage.data if one.name and _is_on_the_hub(one, facts)]
    values["datasets"] = sets or None
    measured_on = (facts.evaluation.get("dataset") or {}).get("name")
    name = facts.data_name or measured_on or public_name(facts.config)
    index = model_index(facts.evaluation, facts.repo.rpartition("/")[2], name)
    values["model-index"] = index or None
    values = {key: value for key, value in values.items() if value is not None}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def _headline(facts: Facts) -> str:
    side = facts.config.data.image_size
    return (
        f"# {plain(facts.repo.rpartition('/')[2])}\n\n"
        f"A text-to-image Diffusion Transformer of {facts.parameters:,} parameters that draws "
        f"{side} × {side} pixels, {_trained(facts)}.\n"
    )


def _trained(facts: Facts) -> str:
    lineage = _lineage(facts)
    sets = sets_in_words(
        f"its built-in {data.name}" if data.name in BUILT_IN else _shown_set(data, facts)
        for data in lineage.data
    )
    if facts.data_name and all(data.name != facts.data_name for data in lineage.data):
        sets = plain(facts.data_name)  # another name for what has one
    if lineage.base is None:
        return f"trained from scratch with Limner on {sets}"
    base = lineage.base.model
    begun = _shown_model(base) if base else "a model that is not public"
    rank, how = facts.config.lora.rank, ""
    if rank or lineage.method == "lora":
        how = f", by LoRA{f' of rank {rank}' if rank else ''}, merged into the weights"
    return f"fine-tuned with Limner on {sets}{how}; it began from {begun}"


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


def _pictures(facts: Facts) -> str:
    if not facts.samples:
        return "No pictures were kept with this checkpoint.\n"
    lines = []
    for first in range(0, len(facts.samples), ACROSS):
        row = facts.samples[first : first + ACROSS]
        if first == 0:
            lines += ["|" + " |" * len(row), "|" + " :-: |" * len(row)]
        cells = [f'<img src="{s.file}" width="128" alt="{plain(s.prompt)}">' for s in row]
        words = [f"{plain(s.prompt) or '(the empty prompt)'} ({s.split}, {s.seed})" for s in row]
        lines += [f"| {' | '.join(cells)} |", f"| {' | '.join(words)} |"]
    how = " ".join(dict.fromkeys(how_drawn(sample.drawn) for sample in facts.samples))
    return (
        "\n".join(lines) + "\n\nIn brackets: whether the prompt was trained, held out of training, "
        f"or is free, and the seed. {how}\n"
    )


def _use(facts: Facts) -> str:
    # Every shell and Python take letters, spaces, and commas as they are.
    simple = (
        s.prompt for s in facts.samples if s.prompt.replace(" ", "a").replace(",", "a").isalpha()
    )
    prompt = next(simple, "a red apple")
    return f"""## How to use it

With diffusers, without Limner:

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{facts.repo}", trust_remote_code=True)
picture = pipe("{prompt}", generator=torch.Generator().manual_seed(42)).images[0]
picture.save("picture.png")
```

`trust_remote_code` is needed because the network is no part of diffusers; its code is in this
repository (`pipeline.py`, `transformer/`, `text_encoder/`, `scheduler/`), to be read before it is
run. One of diffusers' own schedulers takes the place of the one that is here by
`from_config(pipe.scheduler.config)`.

With Limner, which draws the same picture from the same seed:

```bash
limner generate {facts.repo} "{prompt}" --seed 42
```

and goes on from it with other pictures:

```bash
limner train training.init_from={facts.repo} data.dataset_path=my_pictures
```
"""


def _recipe(facts: Facts) -> str:
    config, results = facts.config, facts.results
    time = format_duration(facts.seconds)
    where = f" on {plain(results['device'])}" if results.get("device") else ""
    versions = results.get("versions", {})
    rows = [
        ("parameters", f"{facts.parameters:,}, published in {facts.dtype}"),
        ("updates", f"{facts.step:,}"),
        ("pictures seen", f"{facts.images:,}"),
        ("training time", f"{time}{where}"),
        ("software", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("autoencoder", _part(config.vae.pretrained_model_name, "vae")),
        (
            "text encoder",
            _part(config.text_encoder.pretrained_model_name, "text_encoder") or "trained along",
        ),
    ]
    rows += [(f"`{key}`", f"`{value}`") for key, value in changed_settings(config)]
    return "\n".join(
        [
            "## How it was trained",
            "",
            "Settings of Limner that are not its defaults, and what came of them:",
            "",
            *table(("", ""), [row for row in rows if row[1]]),
        ]
    )


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
            if key != "pretrained_model_name":
                yield name, short(value)
            elif is_hub_id(value):
                yield name, plain(value)


def _part(name: str | None, folder: str) -> str:
    """A pretrained part by its Hub id; one from a folder on somebody's machine lies here, too."""
    if not name:
        return ""
    return plain(name) if is_hub_id(name) else f"in `{folder}/`"


def _data(facts: Facts) -> str:
    lineage = _lineage(facts)
    about = facts.results.get("dataset") or facts.evaluation.get("dataset") or {}
    known = about.get("description", "")
    said = [plain(known)] if known else []
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
    return "\n".join(["## Data and licence", "", *paragraphs(said)])


def _before(facts: Facts) -> list[str]:
    """Of the models before this one: which they are, and to whom the same credit is due."""

    def shown(data: LearnedFrom) -> str:
        name = _shown_set(data, facts)
        return f"{name} (licence: {plain(data.license)})" if data.license else name

    lineage = _lineage(facts)
    said = before_in_words(lineage, _shown_model, shown)
    named = {data.name for data in lineage.data}
    for before in lineage.models_before():
        for name in [data.name for data in before.data if data.name not in named]:
            named.add(name)
            if name in BUILT_IN:
                said.append(BUILT_IN[name])
    return said


def _measured(facts: Facts) -> str:
    return "\n".join(measured_section(facts.results, facts.evaluation, facts.page))


def _limits(facts: Facts) -> str:
    said = [
        f"It was trained at {_sizes(facts)} pixels; other sizes are not tested.",
        "It knows the subjects and the words of its training captions, and little else.",
        "A model that saw few pictures many times can draw them again nearly as they were.",
        "There is no filter for what is asked or drawn.",
    ]
    return "\n".join(["## Limits", "", *bullets(said)])
