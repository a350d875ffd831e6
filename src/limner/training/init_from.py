"""Fine-tuning: a new run that starts with the weights of another model (`training.init_from`).

Weights that fit by name and shape are taken, the others are initialised anew, and both are
reported. The vocabulary of the built-in text encoder is kept, so that its tokens mean what they
meant; built on bytes, it can spell any language.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.inherit import MEANING
from limner.checkpoint.lineage import Lineage, learned_from, method_of, named
from limner.checkpoint.open_model import open_model
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.errors import LimnerError
from limner.models.text_to_image import TextToImage
from limner.text.tokenizer import CaptionTokenizer

EMBEDDING, POSITIONS = "text_encoder.embedding.weight", "text_encoder.positions"


def open_origin(config: Config) -> Checkpoint | WeightsFile | None:
    """The model that the run starts from; None: it starts from scratch. Raises LimnerError."""
    name = config.training.init_from
    if name is None:
        return None
    try:
        opened = open_model(name)
    except LimnerError as error:
        raise LimnerError(f"training.init_from: {error}") from None
    if opened.config.model.flow_map:
        raise LimnerError(
            f"training.init_from: {name} is a distilled model, which cannot be trained further; "
            "fine-tune the model it was made from, and distill the result"
        )
    return opened


def lineage_of(
    config: Config,
    origin: Checkpoint | WeightsFile | None,
    checkpoint: Checkpoint | None,
    changed: bool = False,
) -> Lineage:
    """Where the model of a run comes from.

    Args:
        origin: the model whose weights it starts with.
        checkpoint: the checkpoint that it resumes from, perhaps with other data.
        changed: whether the rows differ from those the checkpoint learned from.
    """
    data = (learned_from(config),)
    if checkpoint is not None:
        before, now = checkpoint.config.data, config.data
        elsewhere = (before.dataset_name, before.dataset_path) != (
            now.dataset_name,
            now.dataset_path,
        )
        return checkpoint.lineage.and_from(data[0], another=changed and elsewhere)
    method = method_of(config)
    if origin is None:
        return Lineage(data=data, method=method)
    begun = named(origin.lineage, str(config.training.init_from))
    return Lineage(data=data, method=method, base=begun)


def words_of(origin: Checkpoint | WeightsFile | None, config: Config) -> CaptionTokenizer | None:
    """The tokenizer of `origin`; None if it has none or the configuration asks for another
    vocabulary size."""
    text = config.text_encoder
    if origin is None or origin.tokenizer is None or text.pretrained_model_name is not None:
        return None
    if text.vocab_size != origin.config.text_encoder.vocab_size:
        return None
    assert text.max_length
    return CaptionTokenizer(origin.tokenizer.tokenizer, text.max_length)


def start_from(
    model: TextToImage,
    tokenizer: CaptionTokenizer | None,
    origin: Checkpoint | WeightsFile | None,
    frozen: bool = False,
) -> list[str]:
    """Load the (averaged) weights that fit into a newly initialised model; returns notes about
    those that do not.

    Args:
        frozen: the weights will not be trained, so all of them must fit.

    Raises:
        LimnerError: nothing fits (or not all, if frozen), or the weights are damaged.
    """
    if origin is None:
        return []
    there, here = origin.tensors(), model.state_dict()
    # Half a layer is useless: where a weight does not fit, its bias is initialised anew, too.
    unfit = {
        _layer(name)
        for name, tensor in here.items()
        if name not in (EMBEDDING, POSITIONS)
        and (name not in there or there[name].shape != tensor.shape)
    }
    taken, matrices, partly, new = 0, 0, [], {}
    for name, tensor in here.items():
        found = there.get(name)
        if found is None:
            new[name] = "not in that model"
        elif name == EMBEDDING and _words_differ(tokenizer, origin) and _same_width(tensor, found):
            assert tokenizer
            assert origin.tokenizer
            count = _take_words(tensor, found, tokenizer, origin.tokenizer)
            partly.append(f"{count} of {len(tensor)} words")
        elif name == POSITIONS and tensor.shape != found.shape and _same_width(tensor, found):
            count = min(len(tensor), len(found))
            tensor[:count] = found[:count].to(tensor)
            partly.append(f"the first {count} of {len(tensor)} places of a caption")
        elif found.shape != tensor.shape:
            new[name] = f"{_size(tensor)} in this model, {_size(found)} in the other"
        elif name not in (EMBEDDING, POSITIONS) and _layer(name) in unfit:
            new[name] = "its layer is new"
        else:
            tensor.copy_(found)
            taken += 1
            matrices += tensor.dim() > 1
    place = origin.path if isinstance(origin, WeightsFile) else origin.folder
    if not matrices:
        name, reason = next(iter(new.items()))
        raise LimnerError(
            f"training.init_from: no weights of {place} fit this model ({name}: {reason}); leave "
            "model.* unset to use its shape, or train without init_from"
        )
    if frozen and (random := [*partly, *_groups(new)]):
        raise LimnerError(
            "lora.rank: adapters do not train the base model, so these weights would stay random: "
            f"{', '.join(random)}; leave model.* and text_encoder.* unset to use those of {place}, "
            "or train without lora"
        )
    said = [f"initialised from {place}: {taken} of {len(here)} tensors copied"]
    if partly:
        said.append("partly copied: " + ", ".join(partly))
    # A student has them beside what its teacher has; at first they change nothing.
    student = {name: new.pop(name) for name in list(new) if model.is_flow_map and _of_steps(name)}
    if student:
        said.append(
            "added, to draw in few steps: " + ", ".join(_groups(dict.fromkeys(student, "")))
        )
    if new:
        said.append("randomly initialised: " + ", ".join(_groups(new)))
    if left := _groups({name: "" for name in there if name not in here}):
        said.append("not used: " + ", ".join(left))
    return ["; ".join(said)]


def _of_steps(name: str) -> bool:
    return name.startswith(
        (
            *("denoiser.span_embedding.", "denoiser.input_paths.", "denoiser.guidance_embedding."),
            *("denoiser.span_embedder.", "denoiser.guidance_embedder."),
        )
    )


def other_meaning(origin: Checkpoint | WeightsFile | None, config: Config) -> list[str]:
    """A sentence about weights that fit by shape but no longer mean the same, if there are any.

    Raises:
        LimnerError: adapters are asked for, but the frozen weights beside them would mean something
            else.
    """
    if origin is None:
        return []
    keys = [("model", "num_heads"), *(("scheduler", key) for key in MEANING)]
    keys.append(("vae", "fingerprint"))  # latents with as many channels, from other weights
    differ = [
        f"{section}.{key}: {there} in that model, {here} in this run"
        for section, key in keys
        if (there := getattr(getattr(origin.config, section), key))
        != (here := getattr(getattr(config, section), key))
    ]
    if not differ:
        return []
    told = "; ".join(differ)
    if config.lora.rank is not None:
        raise LimnerError(
            "lora.rank: adapters do not train the base model, which was trained with other "
            f"settings ({told}); leave these keys unset to use that model's"
        )
    return [
        f"the weights fit, but were trained with other settings ({told}), so much has to be "
        "learned again"
    ]


def _words_differ(tokenizer: CaptionTokenizer | None, origin: Checkpoint | WeightsFile) -> bool:
    if tokenizer is None or origin.tokenizer is None:
        return False
    return tokenizer.tokenizer.get_vocab() != origin.tokenizer.tokenizer.get_vocab()


def _same_width(a: Tensor, b: Tensor) -> bool:
    return a.shape[1:] == b.shape[1:]


@torch.no_grad()
def _take_words(
    into: Tensor, rows: Tensor, tokenizer: CaptionTokenizer, earlier: CaptionTokenizer
) -> int:
    """Copy the rows of the tokens that both spell alike; returns how many."""
    known = earlier.tokenizer.get_vocab()
    pairs = [(i, known[w]) for w, i in tokenizer.tokenizer.get_vocab().items() if w in known]
    for here, there in pairs:
        into[here] = rows[there].to(into)
    return len(pairs)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _groups(names: dict[str, str]) -> list[str]:
    """Describe tensors by the part they belong to, with the reason for the first."""
    groups: dict[str, list[str]] = {}
    for name, reason in sorted(names.items(), key=lambda item: item[1] == "its layer is new"):
        parts = name.split(".")
        key = ".".join(parts[:3] if len(parts) > 2 and parts[2].isdigit() else parts[:2])
        groups.setdefault(key, []).append(reason)
    return [f"{key} ({why[0]})" if why[0] else key for key, why in groups.items()]
