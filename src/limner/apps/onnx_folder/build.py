"""Writes the folder: ONNX files, settings, tokenizer, and the program that draws with them.

text_encoder.onnx    prompts' tokens to what the denoiser is told
denoiser.onnx        one step's prediction
decoder.onnx         latents to pictures, of a model that draws in latents
config.json          settings, and where the model comes from
tokenizer.json       as the package tokenizers writes it
draw.py              all else, with numpy and onnxruntime
manifest.json        sizes and checksums of these files
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from limner.apps.onnx_folder.graphs import (
    Graph,
    check_installed,
    check_same,
    decoder_graph,
    denoiser_graph,
    text_graph,
    to_onnx,
)
from limner.apps.onnx_folder.runner.drawer import FORMAT
from limner.apps.onnx_folder.weights import PRECISIONS, Precision, stored_in
from limner.apps.publishing.diffusers_folder import is_export
from limner.apps.publishing.export import in_precision
from limner.apps.publishing.standalone import standalone
from limner.apps.web_page.build import is_own_tokenizer, name_of_model
from limner.apps.web_page.credits import credits
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.manifest import written_whole
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import WeightsFile
from limner.data.own_folder import keep_out_of_the_data
from limner.errors import LimnerError
from limner.files.atomic import refuse_mounted
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names
from limner.models.text_to_image import TextToImage, build_model
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.pretrained.components import Parts, moved, open_parts
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.tokenizer import CaptionTokenizer
from limner.version import __version__

DENOISER, RUNNER = "denoiser.onnx", "draw.py"
COMMAND = "limner.apps.onnx_folder.runner.command"
MOST_BYTES = 2 * 10**9 - 10**8
"""Of an ONNX file with its weights, whose format ends at 2^31; larger ones have a file beside."""
SENTENCES = ("a red apple", "Two BLUE squares, isn't it? 12", "", "红苹果 é")
"""By which a tokenizer is compared."""


def export_onnx(
    checkpoint: str | Path,
    output: str | Path,
    precision: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    averaged: bool = True,
) -> Path:
    """Export a checkpoint as a folder of ONNX files with a program that draws. It is written
    atomically.

    Args:
        checkpoint: a checkpoint folder, a run folder, or an exported weights file.
        output: the folder.
        precision: in which the weights are stored; None: float32. It is computed in float32.
        vae, text_encoder: current paths of the pretrained components, if they moved after training.
        averaged: use the EMA weights instead of those of the last update.

    Returns:
        The folder that was written.

    Raises:
        LimnerError: there is no valid checkpoint, a component or a package is missing, a network
            cannot be converted, or the output is something other than an earlier export.
        OSError: the output could not be written.
    """
    output = Path(output)
    known = [name for name in PRECISIONS if name == (precision or "float32")]
    if not known:
        raise LimnerError(
            f"an ONNX folder cannot hold weights in {precision}; use one of {', '.join(PRECISIONS)}"
        )
    check_installed()
    with FolderLock(output, "choose another --output"):
        opened = open_model(checkpoint)
        if not averaged and isinstance(opened, WeightsFile):
            raise LimnerError(
                f"{checkpoint} contains only one set of weights; export from the original "
                "checkpoint instead"
            )
        keep_out_of_the_data(output, opened.config, "--output", checkpoint)
        refuse_foreign(output)
        parts = open_parts(moved(opened.config, vae=vae, text_encoder=text_encoder))
        with written_whole(output, check=refuse_foreign) as staging:
            write_folder(staging, checkpoint, opened, parts, known[0], averaged)
    return output


def refuse_foreign(folder: Path) -> None:
    """Raises LimnerError if `folder` exists and is not an unmodified export."""
    refuse_mounted(folder)
    if not folder.exists() or is_export(folder, DENOISER) or not foreign_names(folder):
        return
    raise LimnerError(
        f"{folder} already exists and is not an earlier export, contains other files, or was "
        "changed since, so it is not overwritten; use a new folder"
    )


def write_folder(
    folder: Path,
    checkpoint: str | Path,
    opened: Checkpoint | WeightsFile,
    parts: Parts,
    precision: Precision,
    averaged: bool,
) -> None:
    """Write all files but the manifest."""
    config, reader = parts.config, parts.text_encoder
    data, down = config.data, parts.autoencoder.downsampling
    assert config.model.in_channels
    shape = (config.model.in_channels, data.image_size // down, data.image_size // down)
    if math.prod(shape) < 16:
        raise LimnerError(f"{checkpoint} draws {math.prod(shape)} numbers; it takes 16 or more")
    words = reader or opened.tokenizer
    assert words is not None
    model = build_model(config, words.text_size)
    opened.load_weights(model, averaged=averaged)
    model.eval().requires_grad_(False)
    if precision == "float16":
        in_precision(dict(model.named_parameters()), precision)  # raises where it overflows
    text = write_tokenizer(folder / "tokenizer.json", words)
    for name, graph in graphs(model, parts, shape, text["max_length"]):
        write_graph(folder / f"{name}.onnx", graph, name, precision)
    about = description(checkpoint, opened, parts, model, precision)
    about |= {"shape": list(shape), "text": text}
    write_json(folder / "config.json", about)
    program = standalone(COMMAND, "main") + '\n\nif __name__ == "__main__":\n    sys.exit(main())\n'
    (folder / RUNNER).write_text(program, encoding="utf-8", newline="\n")


def graphs(
    model: TextToImage, parts: Parts, shape: tuple[int, int, int], length: int
) -> list[tuple[str, Graph]]:
    """The networks by the names of their files."""
    if parts.text_encoder is not None:
        parts.text_encoder.load(torch.device("cpu"), torch.float32)
    text = text_graph(model, parts.text_encoder, min(9, length))
    found = [("text_encoder", text), ("denoiser", denoiser_graph(model, text, shape))]
    if isinstance(parts.autoencoder, PretrainedAutoencoder):
        parts.autoencoder.load(torch.device("cpu"), torch.float32)
        found.append(("decoder", decoder_graph(parts.autoencoder, shape)))
    return found


def write_graph(path: Path, graph: Graph, name: str, precision: Precision) -> None:
    """Write a network, compare it with torch's, and then store its weights in the precision."""
    import onnx

    save(path, to_onnx(graph, name))
    check_same(str(path), graph, name)
    if precision != "float32":
        exact = onnx.load(str(path))
        for written in path.parent.glob(f"{path.name}*"):
            written.unlink()
        save(path, stored_in(precision, exact))


def save(path: Path, model: Any) -> None:
    """One file, or with large weights two, the other ending in .onnx.data."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=size > MOST_BYTES,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )


def write_tokenizer(path: Path, words: CaptionTokenizer | PretrainedTextEncoder) -> dict[str, Any]:
    """Write tokenizer.json; returns what `config.json` says of it."""
    if isinstance(words, CaptionTokenizer):
        path.write_text(words.tokenizer.to_str(), encoding="utf-8", newline="\n")
        kind = "limner" if is_own_tokenizer(words) else "tokenizers"
        said = {"tokenizer": kind, "max_length": words.max_length, "start": [1]}
        return said | {"padding": 0, "empty": None}
    from tokenizers import Tokenizer

    theirs = words.tokenizer
    if not getattr(theirs, "is_fast", False):
        raise LimnerError(
            f"the tokenizer of the text encoder, {type(theirs).__name__}, has no tokenizer.json; "
            "use --format diffusers (a folder)"
        )
    own = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(words.max_length, direction=theirs.truncation_side)
    special = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, 0)
    for sentence in SENTENCES:
        wanted = theirs(sentence, truncation=True, max_length=words.max_length)["input_ids"]
        if own.encode(sentence).ids != list(wanted):
            raise LimnerError(
                f"the tokenizer of the text encoder, {type(theirs).__name__}, does more than its "
                "tokenizer.json; use --format diffusers (a folder)"
            )
    own.save(str(path))
    return {
        "tokenizer": "tokenizers",
        "max_length": words.max_length,
        "start": [],
        "padding": theirs.pad_token_id or 0,
        "empty": next(token for token in special if token is not None),
    }


def description(
    checkpoint: str | Path,
    opened: Checkpoint | WeightsFile,
    parts: Parts,
    model: TextToImage,
    precision: Precision,
) -> dict[str, Any]:
    """What draw.py must know of the model, and what people should: settings, and credits."""
    config = parts.config
    scheduler = config.scheduler.model_dump(mode="json")
    path = ("objective", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    return {
        "format": FORMAT,
        "limner_version": __version__,
        "name": name_of_model(checkpoint),
        "step": opened.state.step,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": precision,
        "architecture": config.model.architecture,
        "size": config.data.image_size,
        "decoder": isinstance(parts.autoencoder, PretrainedAutoencoder),
        "flow_map": config.model.flow_map,
        "steps": config.distill.numbers_of_steps if config.model.flow_map else [],
        "scheduler": {name: scheduler[name] for name in path},
        "prediction_type": config.scheduler.prediction_type,
        "sampling": config.sampling.model_dump(mode="json"),
        "credits": credits(opened.lineage.public()),
    }


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
