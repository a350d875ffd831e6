"""Writes the page: weights, tokenizer, settings, and programs in one HTML file.

Opened from a disk it may ask for nothing, so all of it is inside: the weights and the compiled
matrix product as base64, the programs of the workers as text. Its Content-Security-Policy allows
only these, by their hashes, and no connection anywhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from limner.apps.publishing.export import in_precision
from limner.apps.serving.page_parts import source, with_parts
from limner.apps.web_page.assemble import assemble
from limner.apps.web_page.credits import credits
from limner.apps.web_page.weights import PRECISIONS, Precision, pack
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.data.own_folder import keep_out_of_the_data
from limner.diffusion.solvers import SOLVERS
from limner.errors import LimnerError
from limner.files.atomic import replacing
from limner.files.folder_lock import FolderLock
from limner.messages import shorten_name
from limner.models.text_to_image import build_model
from limner.redaction import is_hub_id
from limner.reports.example_prompts import example_prompts
from limner.text.tokenizer import CaptionTokenizer
from limner.version import __version__

SUFFIX = ".html"
FILE = "limner.html"
WORKER = (
    *("noise.js", "tokenizer.js", "weights.js", "engine.js", "network.js"),
    *("solvers.js", "painter.js", "worker.js"),
)
"""The program of the workers, one file after the other."""
PAGE = ("png.js", "page.js")
MARK = b'<meta name="generator" content="limner export --format web">'
"""By which an earlier page is told from other people's files."""
MOST_BYTES = 300 * 10**6
"""Of the packed weights: browsers end a text at 512 MB, and this is in base64."""
POLICY = (
    "default-src 'none'; script-src 'wasm-unsafe-eval' '{script}'; style-src '{style}'; "
    "img-src data:; worker-src blob:; base-uri 'none'; form-action 'none'"
)
OTHER_FORMATS = "Use --format diffusers (a folder) or --format safetensors (one file for Limner)."
PLACE = re.compile(r"\{\{(\w+)\}\}")


class WebPage(NamedTuple):
    html: bytes
    """The file, UTF-8."""
    about: dict[str, Any]
    """What it knows of its model (see `description`)."""


def export_web_page(
    checkpoint: str | Path,
    output: str | Path,
    precision: str | None = None,
    averaged: bool = True,
) -> Path:
    """Export a checkpoint as a page that draws in a browser. The file is written atomically.

    Args:
        checkpoint: a checkpoint folder, a run folder, or an exported weights file.
        output: the file, ending in .html, or a folder for it.
        precision: of the weights; None: int8.
        averaged: use the EMA weights instead of those of the last update.

    Returns:
        The file that was written.

    Raises:
        LimnerError: there is no valid checkpoint, the page cannot draw such a model, or the output
            is something other than an earlier page.
        OSError: the output could not be written.
    """
    output = Path(output)
    if output.suffix.lower() not in (SUFFIX, ".htm"):
        output = output / FILE
    known = [name for name in PRECISIONS if name == (precision or "int8")]
    if not known:
        raise LimnerError(
            f"a web page cannot hold weights in {precision}; use one of {', '.join(PRECISIONS)}"
        )
    with FolderLock(output, "choose another --output"):
        opened = open_model(checkpoint)
        if not averaged and isinstance(opened, WeightsFile):
            raise LimnerError(
                f"{checkpoint} contains only one set of weights; export from the original "
                "checkpoint instead"
            )
        refuse_what_it_cannot_draw(opened.config, opened.tokenizer, checkpoint)
        keep_out_of_the_data(output, opened.config, "--output", checkpoint)
        refuse_foreign(output)
        examples = example_prompts(checkpoint, opened.config)
        page = web_page(opened, name_of_model(checkpoint), examples, known[0], averaged)
        with replacing(output, needed=len(page.html)) as staging:
            staging.write_bytes(page.html)
    return output


def refuse_what_it_cannot_draw(
    config: Config,
    tokenizer: CaptionTokenizer | None,
    checkpoint: str | Path,
    instead: str = OTHER_FORMATS,
) -> None:
    """Raises LimnerError that names everything about a model that the page has no program for.

    Args:
        instead: what to do, a sentence.
    """
    found = list(obstacles(config, tokenizer))
    if found:
        raise LimnerError(
            f"{checkpoint} cannot be a web page:\n"
            + "\n".join(f"  - {reason}" for reason in found)
            + f"\n{instead}"
        )


def obstacles(config: Config, tokenizer: CaptionTokenizer | None) -> Iterator[str]:
    sampling = config.sampling
    if config.vae.pretrained_model_name is not None:
        yield "it draws in latents (vae.pretrained_model_name); the page draws in pixels"
    if config.text_encoder.pretrained_model_name is not None or tokenizer is None:
        yield (
            "its prompts are read by a pretrained text encoder (text_encoder.pretrained_model_name)"
            "; the page has the built-in one"
        )
    elif not is_own_tokenizer(tokenizer):
        yield "its tokenizer.json was changed; the page reads prompts as Limner's own does"
    if config.model.architecture != "modern":
        yield f"its model.architecture is {config.model.architecture}; the page has modern"
    if config.scheduler.objective != "flow_matching":
        yield (
            f"its scheduler.objective is {config.scheduler.objective}; the page draws with "
            "flow_matching"
        )
    if sampling.guidance_type != "cfg":
        yield f"its sampling.guidance_type is {sampling.guidance_type}; the page has cfg"
    if sampling.guidance_rescale:
        yield f"its sampling.guidance_rescale is {sampling.guidance_rescale:g}; the page has none"


def is_own_tokenizer(tokenizer: CaptionTokenizer) -> bool:
    """Whether it differs from any other that Limner learned only in its words."""

    def without_words(one: CaptionTokenizer) -> dict[str, Any]:
        values = json.loads(one.tokenizer.to_str())
        del values["model"]["vocab"], values["model"]["merges"]
        return values

    return without_words(tokenizer) == without_words(CaptionTokenizer.learn([], 300, 2))


def refuse_foreign(output: Path) -> None:
    """Raises LimnerError if `output` exists and is not an earlier page."""
    if output.is_dir():
        raise LimnerError(f"--output {output} is a folder; use a file such as {output / FILE}")
    if not output.exists():
        return
    with output.open("rb") as file:
        is_ours = MARK in file.read(2000)
    if not is_ours:
        raise LimnerError(
            f"{output} already exists and is not an earlier export, so it is not overwritten; use "
            "a new file"
        )


def web_page(
    opened: Checkpoint | WeightsFile,
    name: str,
    examples: Sequence[str],
    precision: Precision = "int8",
    averaged: bool = True,
) -> WebPage:
    """The page of a model.

    Args:
        name: of the model, as the page shows it.
        examples: prompts to begin with.

    Raises:
        LimnerError: the weights take more than `MOST_BYTES`.
    """
    assert opened.tokenizer is not None, "refuse_what_it_cannot_draw has seen to it"
    model = build_model(opened.config, opened.tokenizer.text_size)
    opened.load_weights(model, averaged=averaged)
    weights = in_precision(
        dict(model.named_parameters()), "float16" if precision == "float16" else "float32"
    )
    packed, parts = pack(weights, precision)
    if len(packed) > MOST_BYTES:
        raise LimnerError(
            f"the weights take {len(packed) / 1e6:,.0f} MB in {precision}, more than a page can "
            f"hold ({MOST_BYTES / 1e6:,.0f} MB); use int8, or another format"
        )
    about = description(opened, name, examples, weights, precision) | {"parts": parts}
    style = with_parts("{{page.css}}{{form.css}}" + own("page.css"))
    script = with_parts("{{page.js}}{{form.js}}" + "".join(map(own, PAGE)))
    policy = POLICY.format(script=csp_hash(script), style=csp_hash(style))
    inside = {
        "policy": policy,
        "style": style,
        # In a script nothing may look like its end.
        "about": json.dumps(about, ensure_ascii=False).replace("<", "\\u003c"),
        "wasm": in_base64(assemble(own("matmul.wat"))),
        "worker": '"use strict";\n' + "".join(map(own, WORKER)),
        "weights": in_base64(gzip.compress(packed, 6, mtime=0)),
        "script": script,
    }
    page = with_parts(own("page.html"))
    return WebPage(PLACE.sub(lambda place: inside[place[1]], page).encode(), about)


def description(
    opened: Checkpoint | WeightsFile,
    name: str,
    examples: Sequence[str],
    weights: dict[str, Tensor],
    precision: Precision,
) -> dict[str, Any]:
    """What the page must know of its model: shapes, settings, words, and where it comes from."""
    config, tokenizer = opened.config, opened.tokenizer
    assert tokenizer is not None
    model, text = config.model, config.text_encoder
    assert text.hidden_size
    words = json.loads(tokenizer.tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in words["merges"]]
    return {
        "limner_version": __version__,
        "name": name,
        "step": opened.state.step,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "weights": precision,
        "size": config.data.image_size,
        "patch": model.patch_size,
        "hidden": model.hidden_size,
        "layers": model.num_layers,
        "heads": model.num_heads,
        "flow_map": model.flow_map,
        "guidance_range": config.distill.guidance_range,
        "text": {
            "width": text.hidden_size,
            "layers": text.num_layers,
            "heads": text.hidden_size // 64,
            "max_length": text.max_length,
        },
        "timesteps": config.scheduler.num_train_timesteps,
        "prediction_type": config.scheduler.prediction_type,
        "sampling": config.sampling.model_dump(mode="json"),
        "steps": config.distill.numbers_of_steps if model.flow_map else [],
        "solvers": list(SOLVERS),
        "examples": list(examples),
        "credits": credits(opened.lineage.public()),
        "tokenizer": {"vocabulary": words["vocab"], "merges": merges},
    }


def name_of_model(checkpoint: str | Path) -> str:
    """The last part of a Hub id or of the run's folder, or the name of the file."""
    if is_hub_id(str(checkpoint)) and not Path(checkpoint).exists():
        return str(checkpoint).partition("@")[0].rpartition("/")[2]
    path = Path(checkpoint).resolve()
    if path.is_file():
        return shorten_name(path.stem)
    return shorten_name(path.parent.name if path.name.startswith("checkpoint-") else path.name)


def own(name: str) -> str:
    """One of the files beside this one."""
    return source("limner.apps.web_page", name)


def csp_hash(text: str) -> str:
    """What a policy allows this text by."""
    return f"sha256-{in_base64(hashlib.sha256(text.encode()).digest())}"


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
