"""A model's web page as a Space: a page of the Hub, which draws in the browser of who opens it.

    README.md      the metadata of the Space (`sdk: static`), the licence, and the credits
    index.html     the page (see limner.apps.web_page)
    manifest.json  sizes and checksums of these files

It is made from the published weights file alone, so that it knows nothing that was withheld.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from huggingface_hub import SpaceCardData

from limner.apps.publishing.card import Facts, about_data, license_of, public_facts
from limner.apps.publishing.markdown import templates
from limner.apps.web_page.build import refuse_what_it_cannot_draw, web_page
from limner.checkpoint.manifest import MANIFEST, damage
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.data.order import evenly_spaced
from limner.errors import LimnerError
from limner.files.atomic import refuse_mounted
from limner.files.output_folders import foreign_names
from limner.reports.example_prompts import MOST

README, PAGE = "README.md", "index.html"


def folder_beside(model: Path) -> Path:
    """The folder of the Space of a model in this folder."""
    return model.with_name(f"{model.name}-space")


def refuse_without_a_page(checkpoint: str | Path) -> None:
    """Raises LimnerError that says why a model cannot be a page."""
    opened = open_model(checkpoint)
    refuse_what_it_cannot_draw(
        opened.config, opened.tokenizer, checkpoint, "Publish it without --space."
    )


def refuse_foreign_space(folder: Path) -> None:
    """Raises LimnerError if `folder` exists and is not an unmodified Space."""
    refuse_mounted(folder)
    names = foreign_names(folder, (README, PAGE, MANIFEST))
    is_ours = (folder / MANIFEST).is_file() and damage(folder) is None
    if names or (foreign_names(folder) and not is_ours):
        raise LimnerError(
            f"{folder} already exists and is not an earlier Space, contains other files, or was "
            "changed since, so it is not overwritten; choose another --output"
        )


def write_space(folder: Path, file: Path, facts: Facts) -> dict[str, str]:
    """Write the files of the Space, except manifest.json.

    Args:
        file: the published weights.
        facts: those of the model card.

    Returns:
        What the page says, by its name: the file without vocabulary and weights, whose letters are
        no words.

    Raises:
        LimnerError: the weights take more than a page can hold.
    """
    opened = WeightsFile.open(file)
    name = facts.repo.rpartition("/")[2]
    page = web_page(opened, name, _examples(facts, opened.config))
    (folder / PAGE).write_bytes(page.html)
    facts = public_facts(facts)
    metadata = SpaceCardData(
        title=name,
        sdk="static",
        app_file=PAGE,
        license=license_of(facts),
        models=[facts.repo],
        tags=["text-to-image", "limner"],
        emoji="🎨",
        colorFrom="gray",
        colorTo="red",
        pinned=False,
        short_description="Draws in your browser, sends nothing",
    )
    text = (
        templates()
        .get_template("space.md")
        .render(
            # As in the model card, lines are not folded.
            metadata=yaml.safe_dump(
                metadata.to_dict(), sort_keys=False, allow_unicode=True, width=10**6
            ),
            name=name,
            repo=facts.repo,
            side=facts.config.data.image_size,
            license=license_of(facts),
            data=about_data(facts),
        )
    )
    (folder / README).write_text(text, encoding="utf-8", newline="\n")
    says = {key: value for key, value in page.about.items() if key != "tokenizer"}
    return {PAGE: json.dumps(says, ensure_ascii=False, indent=1)}


def _examples(facts: Facts, public: Config) -> list[str]:
    """Prompts that the card shows, or those of the published configuration."""
    prompts = [sample.prompt for sample in facts.samples if sample.prompt]
    prompts = list(dict.fromkeys(prompts)) or list(public.training.preview_prompts or ())
    return [prompts[place] for place in evenly_spaced(len(prompts), MOST)]
