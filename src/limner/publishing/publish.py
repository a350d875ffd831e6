"""A model to the Hub: the folder that diffusers loads, the file that Limner draws from, pictures,
and a card that says what it is."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner import __version__
from limner.checkpoint import Checkpoint, newest_good
from limner.checkpoint_writing import written_whole
from limner.config import Config
from limner.config_choices import changed
from limner.device import name_of
from limner.errors import LimnerError
from limner.evaluation import evaluation_folder
from limner.evaluation.run_folder import Run, read_run
from limner.inference.generator import ImageGenerator
from limner.models.parts import moved, open_parts
from limner.publishing.card import Facts, Sample, model_card
from limner.publishing.diffusers_folder import write_diffusers_folder
from limner.publishing.export import (
    FILE_NAME,
    in_precision,
    part_dtype,
    refuse_foreign,
    without_paths,
)
from limner.training.heldout import spread
from limner.weights_file import WeightsFile, open_for_drawing, sha256_of, write_weights_file

CARD = "README.md"
MOST_OF_EACH = 8
"""Pictures of trained prompts, of held-out ones, and of others."""
log = logging.getLogger("limner")


@dataclass(frozen=True)
class Said:
    """What only the publisher can say."""

    license: str | None = None
    """Of the model, by its id on the Hub, such as apache-2.0."""
    data_name: str | None = None
    data_license: str | None = None
    prompts: tuple[str, ...] = ()
    """To draw for the card, besides what the run has drawn."""


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
    say: Callable[[str], None] = print,
) -> str | None:
    """Put everything together and upload it in one commit.

    Args:
        checkpoint: a run folder, one of its checkpoints, or an exported file of weights.
        repo: id of the repository, `owner/name`, or a name alone for one's own.
        private: of a repository that is not there yet.
        dry_run: say what would go, and send nothing.
        output: a folder to keep what is uploaded in; None: it is deleted afterwards.

    Returns:
        The address of the commit; None after a dry run.

    Raises:
        LimnerError: the export fails, or the Hub refuses; no message holds a token.
    """
    if output is not None:
        refuse_foreign(output)
    repo = full_name(repo, dry_run)
    with tempfile.TemporaryDirectory(prefix="limner-publish-") as temporary:
        folder = output or Path(temporary) / "model"
        with written_whole(folder) as staging:
            card = prepare(
                staging, checkpoint, repo, said or Said(), dtype, vae=vae, text_encoder=text_encoder
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            say(f"{path.stat().st_size:>14,}  {path.relative_to(folder).as_posix()}")
        say(f"{sum(path.stat().st_size for path in files):>14,}  bytes in all")
        if dry_run:
            say(f"\n{card}")
            return None
        return upload(folder, repo, private)


def prepare(
    folder: Path,
    checkpoint: str | Path,
    repo: str,
    said: Said,
    dtype: str,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> str:
    """Write all that is uploaded into a folder; returns the card."""
    opened = open_for_drawing(checkpoint)
    parts = open_parts(moved(opened.config, vae=vae, text_encoder=text_encoder))
    weights = in_precision(opened.tensors(), dtype)
    write_diffusers_folder(folder, parts, opened.tokenizer, weights, part_dtype(dtype))
    beside = _with_parts_beside(folder, without_paths(parts.config))
    write_weights_file(folder / FILE_NAME, weights, beside, opened.tokenizer, opened.state)
    run = run_of(opened)
    prompts = said.prompts
    if not prompts and run is None:
        prompts = parts.config.training.preview_prompts or ()
    facts = Facts(
        repo=repo,
        config=parts.config,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        step=opened.state.step,
        images=opened.state.images,
        seconds=opened.state.seconds,
        dtype=dtype,
        weights_file=FILE_NAME,
        samples=[*_draw(folder, prompts), *_kept(folder, run)],
        results=run.results if run else {},
        evaluation=_evaluation(opened),
        license=said.license,
        data_name=said.data_name,
        data_license=said.data_license,
    )
    card = model_card(facts)
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
    return card


def _evaluation(opened: Checkpoint | WeightsFile) -> dict[str, Any]:
    """The evaluation that is beside these weights, if it is of them and of no others."""
    if isinstance(opened, WeightsFile):
        places = [opened.path.with_name(f"{opened.path.stem}-evaluation")]
    else:
        folder = opened.folder
        places = [folder.with_name(f"evaluation-{folder.name}"), folder.with_name("evaluation")]
    for place in places:
        with contextlib.suppress(LimnerError):  # there is none, or it is something else
            found = evaluation_folder.read(place)
            if found.get("checkpoint", {}).get("weights_sha256") == sha256_of(opened.tensors()):
                return found
    return {}


def run_of(opened: Checkpoint | WeightsFile) -> Run | None:
    """The run that these weights are from, if what it drew and measured is about them."""
    if isinstance(opened, WeightsFile):
        return None
    run = read_run(opened.folder.parent)
    if not run.results:
        return None
    newest, _ = newest_good(run.folder, names=())
    since = opened.state.step - int(run.results.get("steps", 0))
    if newest == opened.folder and 0 <= since < opened.config.training.logging_steps:
        return run
    log.warning(
        "what %s measured and drew is not about %s, and is left out of the card (limner report %s "
        "does it anew for the newest checkpoint)",
        *(run.folder, opened.folder.name, run.folder),
    )
    return None


def _draw(folder: Path, prompts: Sequence[str]) -> list[Sample]:
    """Pictures for the card, by the weights that are published."""
    if not prompts:
        return []
    generator = ImageGenerator(folder / FILE_NAME)
    pictures = generator.generate_batch(prompts, seeds=list(range(len(prompts))))
    how = generator.sampling.model_dump(mode="json") | {"dtype": name_of(generator.dtype)}
    (folder / "samples").mkdir(exist_ok=True)
    samples = []
    for seed, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        file = f"samples/drawn-{seed:02d}.png"
        picture.save(folder / file)
        samples.append(Sample(file, prompt, seed, "free", how))
    return samples


def _kept(folder: Path, run: Run | None) -> list[Sample]:
    """Pictures that the run drew at its end, some of each kind."""
    if run is None:
        return []
    (folder / "samples").mkdir(exist_ok=True)
    samples = []
    for split in ("held out", "trained", "free"):
        own = [s for s in run.samples if s.get("split") == split]
        for place in spread(len(own), MOST_OF_EACH):
            found = own[place]
            name = Path(str(found["file"])).name
            shutil.copyfile(run.folder / "samples" / name, folder / "samples" / name)
            sample = Sample(
                f"samples/{name}", found["prompt"], found["seed"], split, run.results["sampling"]
            )
            samples.append(sample)
    return samples


def _with_parts_beside(folder: Path, config: Config) -> Config:
    """The configuration of a file that lies beside the pretrained parts it needs."""
    names = [n for n in ("vae", "text_encoder") if getattr(config, n).pretrained_model_name]
    places = {name: folder / name for name in names}
    loose = {n: changed(getattr(config, n), fingerprint=None) for n in names}
    found = open_parts(moved(config.model_copy(update=loose), **places)).config
    return moved(found, **{name: f"./{name}" for name in names})


# ---- the Hub -----------------------------------------------------------------------------------


def full_name(repo: str, dry_run: bool) -> str:
    """`owner/name` of a repository, the owner being who is logged in unless named.

    Raises:
        LimnerError: no legal id, or nobody is logged in.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise LimnerError(f"--repo {repo}: {str(error).splitlines()[0]}") from None
    if "/" in repo:
        return repo
    if dry_run:
        return f"your-name/{repo}"
    with _told(repo):
        return f"{HfApi().whoami()['name']}/{repo}"


def upload(folder: Path, repo: str, private: bool) -> str:
    """A folder's files to a repository in one commit; returns the commit's address.

    Tokens and addresses are huggingface_hub's own: `hf auth login`, HF_TOKEN, HF_ENDPOINT.
    """
    from huggingface_hub import HfApi

    with _told(repo):
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        message = f"Published with Limner {__version__}"
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        return str(commit.commit_url)


@contextlib.contextmanager
def _told(repo: str) -> Iterator[None]:
    """What the Hub or the way to it refuses, in words and without the token."""
    from huggingface_hub import constants, errors, get_token

    try:
        yield
    except Exception as error:  # of the Hub, of HTTP, of the network, of the disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            reason = (
                "you are not logged in, or your token may not write there: `hf auth login` with a "
                "token that may, or set HF_TOKEN"
            )
        if token := get_token():
            reason = reason.replace(token, "***")
        raise LimnerError(f"{repo} was not published at {constants.ENDPOINT}: {reason}") from None
