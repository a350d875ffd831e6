"""What is uploaded to the Hub: diffusers folder, weights file, samples, model card, and a Space."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from limner.apps.publishing.card import Facts, Sample, license_that_fits, model_card
from limner.apps.publishing.diffusers_folder import write_diffusers_folder
from limner.apps.publishing.export import in_precision, part_dtype, refuse_foreign, sizes
from limner.apps.publishing.hub import full_name, upload
from limner.apps.publishing.leaks import Private, private_of, refuse_leaks
from limner.apps.publishing.model_spec import model_spec
from limner.apps.publishing.public import (
    NAMES_OF_A_SET,
    QUOTED,
    is_public_set,
    public_config,
    public_name,
    public_words,
)
from limner.apps.publishing.run_facts import evaluation_of, kept_samples, run_of
from limner.apps.publishing.space import (
    folder_beside,
    refuse_foreign_space,
    refuse_without_a_page,
    write_space,
)
from limner.checkpoint.find_model import WEIGHTS_FILE
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.lineage import Lineage, write_lineage
from limner.checkpoint.manifest import written_whole
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import WeightsFile, write_weights_file
from limner.config import Config
from limner.config.defaults import changed
from limner.data.own_folder import keep_out_of_the_data
from limner.device import name_of
from limner.errors import LimnerError
from limner.files.folder_lock import FolderLock
from limner.inference.generator import ImageGenerator
from limner.pretrained.components import moved, open_parts
from limner.redaction import is_hub_id, named_places
from limner.training.distillation.teacher import open_teacher

log = logging.getLogger(__name__)

CARD, TEACHER_FILE = "README.md", "teacher.safetensors"


@dataclass(frozen=True)
class Said:
    """Information from the publisher."""

    license: str | None = None
    """Licence of the model, by its id on the Hub, such as apache-2.0."""
    data_name: str | None = None
    data_license: str | None = None
    base_model: str | None = None
    """Hub id of the base model, if the run does not record it."""
    prompts: tuple[str, ...] = ()
    """Additional prompts to sample for the card."""
    page: bool = False
    """Also upload the page of `limner evaluate`, which shows training images."""
    teacher: bool = True
    """Also upload the model that a distilled one was made from, which can be fine-tuned."""


def publish(
    checkpoint: str | Path,
    repo: str,
    private: bool = False,
    dry_run: bool = False,
    said: Said | None = None,
    dtype: str = "float32",
    output: Path | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    space: str | None = None,
) -> str | None:
    """Export a model and upload it in one commit, and its web page as a Space in another.

    Args:
        checkpoint: a run folder, one of its checkpoints, or an exported weights file.
        repo: id of the repository, `owner/name`, or `name` for your own account.
        private: make a new repository private.
        dry_run: only list what would be uploaded.
        said: information from the publisher.
        dtype: of the weights.
        output: keep the uploaded files in this folder, those of the Space in `<output>-space`;
            None: they are deleted afterwards.
        vae, text_encoder: current paths of the pretrained components.
        space: id of the Space; "": that of the repository; None: no Space. A private model has a
            private one.

    Returns:
        The URL of the commit of the model; None after a dry run.

    Raises:
        LimnerError: the export or the upload fails; messages never contain the token.
    """
    if space is not None:
        refuse_without_a_page(checkpoint)
    if output is not None:
        refuse_foreign(output)
        if space is not None:
            refuse_foreign_space(folder_beside(output))
        keep_out_of_the_data(output, open_model(checkpoint).config, "--output", checkpoint)
    repo = full_name(repo, dry_run)
    if space is not None:
        space = full_name(space, dry_run, "--space") if space else repo
    if said and said.base_model and not is_hub_id(said.base_model):
        raise LimnerError(f"--base_model {said.base_model} must be a Hub id, owner/name")
    with (
        FolderLock(output, "choose another --output") if output else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="limner-publish-") as temporary,
    ):
        folder = output or Path(temporary) / "model"
        with written_whole(folder, check=refuse_foreign) as staging:
            said = said or Said()
            ready = prepare(staging, checkpoint, repo, said, dtype, vae, text_encoder, space)
        for line in sizes(folder):
            log.info(line)
        page: tuple[Path, str] | None = None
        if space is not None:
            page = folder_beside(folder), space
            with written_whole(page[0], check=refuse_foreign_space) as staging:
                about = write_space(staging, folder / WEIGHTS_FILE, ready.facts)
                refuse_leaks(staging, ready.private, ready.public, about)
            log.info(f"\nThe Space {space}:")
            for line in sizes(page[0]):
                log.info(line)
        if dry_run:
            if page is not None:
                log.info("\n%s", (page[0] / CARD).read_text("utf-8"))
            log.info(f"\n{ready.card}")
            return None
        return upload(folder, repo, private, page)


@dataclass(frozen=True)
class Ready:
    """A folder that may be uploaded."""

    card: str
    facts: Facts
    private: Sequence[Private]
    """What was searched for."""
    public: Sequence[str]
    """What was meant to be there."""


def prepare(
    folder: Path,
    checkpoint: str | Path,
    repo: str,
    said: Said,
    dtype: str,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    space: str | None = None,
) -> Ready:
    """Write all files of the upload to a folder.

    Args:
        space: id of the Space that the card links to.

    Raises:
        LimnerError: the export fails, or the files contain private information.
    """
    opened = open_model(checkpoint)
    parts = open_parts(moved(opened.config, vae=vae, text_encoder=text_encoder))
    weights = in_precision(opened.tensors(), dtype)
    write_diffusers_folder(folder, parts, opened.tokenizer, weights, part_dtype(dtype))
    beside = _with_parts_beside(folder, public_config(parts.config))
    teacher = _teacher_of(opened, said)
    lineage = public_lineage(opened.lineage, repo, said)
    if teacher is not None and lineage.base is not None:
        lineage = replace(lineage, base=replace(lineage.base, model=repo))
    _write_weights(folder / WEIGHTS_FILE, weights, beside, opened, lineage, repo)
    write_lineage(folder, lineage)
    if teacher is not None:
        _write_teacher(folder, teacher, beside, replace(said, base_model=None), repo, dtype)
    run = run_of(opened)
    name = public_name(opened.config, said.data_name)
    evaluation, page = evaluation_of(folder, opened, name, repo, said.page)
    prompts = said.prompts
    if not prompts and run is None:
        prompts = public_config(parts.config).training.preview_prompts or ()
    facts = Facts(
        repo=repo,
        config=parts.config,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        step=opened.state.step,
        images=opened.state.images,
        seconds=opened.state.seconds,
        dtype=dtype,
        samples=[*_draw(folder, prompts), *kept_samples(folder, run)],
        results=run.results if run else {},
        evaluation=evaluation,
        page=page,
        license=lineage.license,
        lineage=lineage,
        data_name=said.data_name,
        data_license=said.data_license,
        teacher=TEACHER_FILE if teacher else None,
        space=space,
    )
    card = model_card(facts)
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
    configs = [opened.config, parts.config, *([teacher.config] if teacher else [])]
    private, public = _searched(folder, checkpoint, opened.lineage, configs, facts, said)
    refuse_leaks(folder, private, public)
    return Ready(card, facts, private, public)


def _teacher_of(opened: Checkpoint | WeightsFile, said: Said) -> Checkpoint | WeightsFile | None:
    """The model that a distilled one was made from, if it is here and is not published itself."""
    config, base = opened.config, opened.lineage.base
    published = said.base_model or (base is not None and base.model is not None)
    if not config.model.flow_map or not said.teacher or published:
        return None
    if config.training.init_from is None:
        log.warning("the teacher is not published with it: an exported file does not name it")
        return None
    try:
        return open_teacher(config, same_drawing=False).opened
    except LimnerError as error:
        log.warning("the teacher is not published with it: %s", error)
        return None


def _write_teacher(
    folder: Path,
    teacher: Checkpoint | WeightsFile,
    student: Config,
    said: Said,
    repo: str,
    dtype: str,
) -> None:
    """
    Args:
        student: of the weights file, which has the same pretrained components beside it.
    """
    config = public_config(teacher.config)
    for name in ("vae", "text_encoder"):
        part, own = getattr(student, name), getattr(config, name)
        same = {key: getattr(part, key) for key in ("pretrained_model_name", "fingerprint")}
        config = changed(config, **{name: changed(own, **same)})
    lineage = public_lineage(teacher.lineage, repo, said)
    weights = in_precision(teacher.tensors(), dtype)
    _write_weights(folder / TEACHER_FILE, weights, config, teacher, lineage, repo, " (teacher)")


def _write_weights(
    file: Path,
    weights: dict[str, Tensor],
    config: Config,
    opened: Checkpoint | WeightsFile,
    lineage: Lineage,
    repo: str,
    role: str = "",
) -> None:
    """
    Args:
        role: of the model in the repository, for its title.
    """
    owner, _, name = repo.partition("/")
    parameters = sum(tensor.numel() for tensor in weights.values())
    about = {"title": name + role, "author": owner, "license": lineage.license}
    spec = model_spec(opened, config, lineage, parameters, **about)
    written = opened.tokenizer, opened.state, lineage, public_words(opened), spec
    write_weights_file(file, weights, config, *written)


def public_lineage(lineage: Lineage, repo: str, said: Said) -> Lineage:
    """The public lineage, with the information from the publisher."""
    if said.base_model:
        base = lineage.base or Lineage(complete=False)
        lineage = replace(lineage, base=replace(base, model=said.base_model))
    lineage = lineage.said(said.data_name, said.data_license)
    lineage = replace(lineage, model=repo, license=said.license).public()
    return replace(lineage, license=said.license or license_that_fits(lineage))


def _searched(
    folder: Path,
    checkpoint: str | Path,
    lineage: Lineage,
    configs: Sequence[Config],
    facts: Facts,
    said: Said,
) -> tuple[list[Private], list[str]]:
    """Secrets and names of this machine, which no file may contain, and what is meant to be public.

    Args:
        lineage, configs: with the private names.
    """
    places: dict[str, list[str]] = {}
    for found in configs:
        for key, place in named_places(found.model_dump()):
            places.setdefault(key, []).append(place)
        if not is_public_set(found):
            for key in NAMES_OF_A_SET:
                names = re.findall(r"[\w-]+", str(getattr(found.data, key) or ""))
                places.setdefault(f"data.{key}", []).extend(names)
    places["the model"] = [str(checkpoint)]
    places["the output folder"] = [str(folder)]
    places["the current folder"] = [str(Path.cwd())]
    before = [one.name.partition("/")[0] for one in lineage.models_before() if one.name]
    places["the base model"] = [f"./{name}" for name in before]
    evaluation = facts.evaluation
    cases = (evaluation.get("memorisation") or {}).get("worst", ())
    shown = [
        *(sample.prompt for sample in facts.samples),
        *(str(case.get(key, "")) for case in cases for key in QUOTED),
        *(str(line.get(key, "")) for line in evaluation.get("pictures", ()) for key in QUOTED),
    ]
    says = (
        *(name for id in (facts.repo, facts.space or "") for name in (id, *id.split("/"))),
        said.license,
        said.data_name,
        said.data_license,
        said.base_model,
    )
    assert facts.lineage is not None
    models = (facts.lineage, *facts.lineage.models_before())
    known = [text for one in models for text in (one.model, *(data.name for data in one.data))]
    public = [*shown, *said.prompts, *filter(None, (*says, *known))]
    return private_of(places), public


def _draw(folder: Path, prompts: Sequence[str]) -> list[Sample]:
    """Generate images for the card with the published weights."""
    if not prompts:
        return []
    generator = ImageGenerator(folder / WEIGHTS_FILE)
    images = generator.generate_batch(prompts, seeds=list(range(len(prompts))))
    how = generator.sampling.model_dump(mode="json") | {"dtype": name_of(generator.dtype)}
    (folder / "samples").mkdir(exist_ok=True)
    samples = []
    for seed, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        file = f"samples/drawn-{seed:02d}.png"
        image.save(folder / file)
        samples.append(Sample(file, prompt, seed, "free", how))
    return samples


def _with_parts_beside(folder: Path, config: Config) -> Config:
    """The configuration of a weights file next to its pretrained components."""
    names = [n for n in ("vae", "text_encoder") if getattr(config, n).pretrained_model_name]
    places = {name: folder / name for name in names}
    loose = {n: changed(getattr(config, n), fingerprint=None) for n in names}
    found = open_parts(moved(config.model_copy(update=loose), **places)).config
    return moved(found, **{name: f"./{name}" for name in names})
