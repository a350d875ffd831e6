"""The networks as ONNX graphs: text encoder, denoiser, decoder.

What the text encoder puts out, the denoiser is told, by the same names: the keys and values of each
block, the mask, and the condition (`modern`), or the vector of the whole text (`dit`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.models.text_to_image import TextToImage
from limner.pretrained.autoencoder import PretrainedAutoencoder
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.text.batch import TextEmbeddings
from limner.text.conditioning import TextConditioning

OPSET = 20
"""Of onnxruntime 1.17 and newer."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCH, LENGTH = "batch", "length"
AXES = {
    "ids": {0: BATCH, 1: LENGTH},
    "attention_mask": {0: BATCH, 1: LENGTH},
    "keys_values": {0: BATCH, 4: LENGTH},
    "mask": {0: BATCH, 1: LENGTH},
    **{name: {0: BATCH} for name in ("x", "t", "span", "condition", "vector", "latents")},
}
"""Which axes of an input are of any size."""


@dataclass(frozen=True)
class Graph:
    """A network, and what it is called with to see which operations it takes."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]

    def run(self) -> tuple[Tensor, ...]:
        """Its outputs for these inputs."""
        with torch.no_grad():
            found = self.module(*self.inputs.values())
        return found if isinstance(found, tuple) else (found,)


class OwnText(nn.Module):
    """Token ids [B, L], padded with 0, to what the denoiser is told."""

    def __init__(self, model: TextToImage) -> None:
        super().__init__()
        self.text_encoder, self.denoiser = model.text_encoder, model.denoiser

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return told(self.denoiser.prepare(self.text_encoder(ids)))


class PretrainedText(nn.Module):
    """The same by a pretrained encoder (`read_captions`) and the learned projection."""

    def __init__(self, model: TextToImage, reader: PretrainedTextEncoder) -> None:
        super().__init__()
        self.reader, self.summary = reader.model, reader.summary
        self.text_encoder, self.denoiser = model.text_encoder, model.denoiser

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        read = self.reader(input_ids=ids, attention_mask=attention_mask)
        states = read.last_hidden_state
        if self.summary == "pooler":
            vector = read.pooler_output
        else:
            counts = attention_mask.sum(1, keepdim=True)
            if self.summary == "last":
                weights = attention_mask.cumsum(1).eq(counts) & attention_mask.gt(0)
            else:
                weights = attention_mask / counts
            vector = (states * weights[..., None]).sum(1)
        text = TextEmbeddings(states, attention_mask > 0, vector)
        return told(self.denoiser.prepare(self.text_encoder(text)))


class Denoiser(nn.Module):
    """The denoiser, told of the text by the outputs of the text encoder."""

    def __init__(self, model: TextToImage, names: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self.names = model.denoiser, names

    def forward(self, x: Tensor, t: Tensor, *others: Tensor) -> Tensor:
        parts = dict(zip(self.names, others, strict=True))
        span = parts.pop("span", None)
        unread = next(iter(parts.values()))  # what was made of the tokens says all there is to say
        return self.denoiser(
            x, t, TextConditioning(unread, parts.pop("mask", unread), **parts), span
        )


class Decoder(nn.Module):
    """Latents as the model sees them to pictures."""

    mean: Tensor
    scale: Tensor

    def __init__(self, autoencoder: PretrainedAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder.model
        mean, scale = autoencoder.normalisation(torch.device("cpu"))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents / self.scale + self.mean, return_dict=False)[0]


def told(y: TextConditioning) -> tuple[Tensor, ...]:
    """The parts of an encoded text that the denoiser asks for; see `names_of`."""
    if y.keys_values is None or y.condition is None:
        return (y.pooled(),)
    return y.keys_values, y.condition, y.mask


def names_of(model: TextToImage) -> tuple[str, ...]:
    """What the text encoder puts out and the denoiser takes."""
    reads_tokens = hasattr(model.denoiser, "text_vector")
    return ("keys_values", "condition", "mask") if reads_tokens else ("vector",)


def text_graph(model: TextToImage, reader: PretrainedTextEncoder | None, length: int) -> Graph:
    """Of 2 texts of `length` tokens."""
    ids = torch.ones(2, length, dtype=torch.long)
    ids[1, length // 2 + 1 :] = 0
    if reader is None:
        return Graph(OwnText(model).eval(), {"ids": ids}, names_of(model))
    inputs = {"ids": ids, "attention_mask": (ids > 0).long()}
    return Graph(PretrainedText(model, reader).eval(), inputs, names_of(model))


def denoiser_graph(model: TextToImage, text: Graph, shape: tuple[int, int, int]) -> Graph:
    """Of pictures or latents [C, h, w], and the texts of that graph."""
    random = torch.Generator().manual_seed(0)
    inputs = {
        "x": torch.randn(2, *shape, generator=random),
        "t": torch.tensor([700.0, 300.0]),
    }
    if model.is_flow_map:
        inputs["span"] = torch.tensor([125.0, 250.0])
    inputs |= dict(zip(text.outputs, text.run(), strict=True))
    names = tuple(name for name in inputs if name not in ("x", "t"))
    return Graph(Denoiser(model, names).eval(), inputs, ("prediction",))


def decoder_graph(autoencoder: PretrainedAutoencoder, shape: tuple[int, int, int]) -> Graph:
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *shape, generator=random)
    return Graph(Decoder(autoencoder).eval(), {"latents": latents}, ("pictures",))


def to_onnx(graph: Graph, name: str) -> Any:
    """The graph as a model of the package onnx.

    Raises:
        LimnerError: it has an operation that cannot be converted; the message says which.
    """
    dynamic = torch.export.Dim.DYNAMIC
    axes = [dict.fromkeys(AXES[name], dynamic) for name in graph.inputs]
    if isinstance(graph.module, Denoiser):
        shapes: tuple[Any, ...] = (*axes[:2], tuple(axes[2:]))
    else:
        shapes = tuple(axes)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                dynamo=True,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        return tidied(program.model_proto)
    except Exception as error:  # of torch.export and of onnxscript, of any class
        reason = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        raise LimnerError(
            f"the {name.replace('_', ' ')} cannot be converted to ONNX ({reason[0].strip()}); use "
            "--format diffusers (a folder)"
        ) from error


def tidied(model: Any) -> Any:
    """Without the paths and names that torch records of each operation, and with names for what may
    have any size."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    named: dict[str, str] = {}
    for value in graph.input:
        for axis, name in AXES[value.name].items():
            size = value.type.tensor_type.shape.dim[axis]
            named[size.dim_param] = size.dim_param = name
    for value in graph.output:
        for size in value.type.tensor_type.shape.dim:
            if size.HasField("dim_param"):
                size.dim_param = named.get(size.dim_param, size.dim_param)
    return model


def check_same(path: str, graph: Graph, name: str) -> None:
    """Raises LimnerError if onnxruntime computes something else than torch, for one text or picture
    and for two."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    for count in (1, 2):
        some = {key: value[:count] for key, value in graph.inputs.items()}
        here = session.run(None, {key: value.numpy() for key, value in some.items()})
        there = Graph(graph.module, some, graph.outputs).run()
        for one, other in zip(here, there, strict=True):
            apart = (torch.from_numpy(one).float() - other.float()).abs().max().item()
            if not apart <= 1e-3 * max(1.0, other.float().abs().max().item()):
                raise LimnerError(
                    f"the {name.replace('_', ' ')} as ONNX differs by {apart:.2g} from the "
                    "model's; use --format diffusers (a folder), and report this"
                )


def check_installed() -> None:
    """Raises LimnerError, which names the extra, if a package is missing."""
    for package in PACKAGES:
        try:
            __import__(package)
        except ImportError:
            raise LimnerError(
                f'--format onnx requires the package {package}; run pip install "limner[onnx]"'
            ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself; of what fails, it raises."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
