"""A model as a folder in diffusers format.

    model_index.json     the components, and the sampling defaults
    pipeline.py          the pipeline
    transformer/         the denoiser: modeling_limner_<architecture>.py, config.json, weights
    text_encoder/        trained with the model (modeling_limner_text.py), or pretrained
    tokenizer/           its tokenizer
    scheduler/           scheduling_limner.py, scheduler_config.json
    vae/                 the autoencoder, for latent models
    lineage.json         base models and training data (see limner.checkpoint.lineage)
    manifest.json        sizes and checksums of these files

The Python modules are generated from Limner's own source code (see `standalone`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.apps.publishing.standalone import standalone
from limner.checkpoint.manifest import MANIFEST, damage
from limner.config import Config
from limner.errors import LimnerError
from limner.files.small_files import read_json
from limner.files.system_names import is_left_by_itself
from limner.pretrained.autoencoder import IdentityAutoencoder, PretrainedAutoencoder
from limner.pretrained.components import Parts
from limner.pretrained.hub import WEIGHTS, weight_files
from limner.pretrained.text_encoder import PretrainedTextEncoder
from limner.redaction import shown_place
from limner.text.tokenizer import PAD, START, CaptionTokenizer
from limner.version import __version__

TEMPLATES = "limner.apps.publishing.for_diffusers"
TRANSFORMERS = {"modern": "LimnerModernTransformer", "dit": "LimnerDiTTransformer"}
FAST_TOKENIZER = "PreTrainedTokenizerFast"
INDEX = "model_index.json"
NETWORK_WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_diffusers_folder(
    folder: Path,
    parts: Parts,
    tokenizer: CaptionTokenizer | None,
    weights: dict[str, Tensor],
    part_dtype: torch.dtype,
) -> None:
    """Write the files of the folder, except lineage.json and manifest.json.

    Args:
        weights: of the whole model, by their names in a checkpoint.
        part_dtype: dtype of a pretrained text encoder. The files of the autoencoder are copied
            unchanged.
    """
    config, reader = parts.config, parts.text_encoder
    name = TRANSFORMERS[config.model.architecture]
    module = f"modeling_limner_{config.model.architecture}"
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "LimnerPipeline"],
        **_versions(),
        "transformer": [module, name],
        "scheduler": ["scheduling_limner", "LimnerScheduler"],
        "vae": [None, None],
    }
    _write(folder / "pipeline.py", standalone(f"{TEMPLATES}.pipeline", "LimnerPipeline"))
    own = "denoiser." if reader is None else ""  # otherwise also the adapter to the text encoder
    _write_network(
        folder / "transformer" / f"{module}.py",
        standalone(f"{TEMPLATES}.transformer", name),
        {"_class_name": name, **_transformer_settings(parts)},
        {key: tensor for key, tensor in weights.items() if key.startswith(own)},
    )
    if reader is None:
        assert tokenizer is not None
        index["text_encoder"] = ["modeling_limner_text", "LimnerTextEncoder"]
        index["tokenizer"] = ["transformers", FAST_TOKENIZER]
        _write_network(
            folder / "text_encoder" / "modeling_limner_text.py",
            standalone(f"{TEMPLATES}.text_encoder", "LimnerTextEncoder"),
            {"_class_name": "LimnerTextEncoder", **_text_settings(config, tokenizer)},
            {key: tensor for key, tensor in weights.items() if not key.startswith(own)},
        )
        _write_tokenizer(folder / "tokenizer", tokenizer)
    else:
        index |= _copy_text_encoder(folder, reader, part_dtype)
    if isinstance(parts.autoencoder, PretrainedAutoencoder):
        index["vae"] = ["diffusers", parts.autoencoder.class_name]
        _copy_autoencoder(folder / "vae", parts.autoencoder)
    _write(
        folder / "scheduler" / "scheduling_limner.py",
        standalone(f"{TEMPLATES}.scheduler", "LimnerScheduler"),
    )
    settings = {"_class_name": "LimnerScheduler", **scheduler_settings(config)}
    _write_json(folder / "scheduler" / "scheduler_config.json", settings)
    _write_json(folder / INDEX, index | _pipeline_settings(config, reader))


def is_export(folder: Path, sign: str = INDEX) -> bool:
    """Whether a folder is an unmodified export: its manifest lists all files, and their checksums
    match, so that an edited card is not overwritten.

    Args:
        sign: a file that every export of its format has.
    """
    try:
        listed = set(read_json(folder / MANIFEST)["files"])
        is_ours = (folder / sign).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not is_left_by_itself(path.name)
    }
    texts = tuple(n for n in listed if not n.endswith((".safetensors", ".onnx", ".data")))
    return is_ours and found <= listed | {MANIFEST} and damage(folder, texts) is None


# ---- configuration of the components -----------------------------------------------------------


def _transformer_settings(parts: Parts) -> dict[str, Any]:
    model, text, scheduler = parts.config.model, parts.config.text_encoder, parts.config.scheduler
    settings = {
        "in_channels": model.in_channels,
        "patch_size": model.patch_size,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
        "text_width": text.hidden_size,
        "states_width": parts.text_encoder.width if parts.text_encoder else None,
        "sample_size": parts.config.data.image_size // parts.autoencoder.downsampling,
        "downsampling": parts.autoencoder.downsampling,
        "objective": scheduler.objective,
        "prediction_type": scheduler.prediction_type,
        "flow_map": model.flow_map,
        "guidance_embeds": parts.config.distill.guidance_range is not None,
    }
    if isinstance(parts.autoencoder, PretrainedAutoencoder):
        mean, scale = parts.autoencoder.normalisation(torch.device("cpu"))
        settings["latents_mean"] = mean.flatten().tolist()
        settings["latents_scale"] = scale.flatten().tolist()
    return settings


def _text_settings(config: Config, tokenizer: CaptionTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "max_length": tokenizer.max_length,
        "hidden_size": config.text_encoder.hidden_size,
        "num_layers": config.text_encoder.num_layers,
    }


def scheduler_settings(config: Config) -> dict[str, Any]:
    """The configuration of LimnerScheduler, compatible with the schedulers of diffusers."""
    scheduler, sampling = config.scheduler, config.sampling
    settings: dict[str, Any] = {
        "objective": scheduler.objective,
        "num_train_timesteps": scheduler.num_train_timesteps,
        "solver": sampling.scheduler_type,
    }
    if scheduler.objective == "flow_matching":
        return settings | {
            "shift": sampling.shift,
            "flow_shift": sampling.shift,
            "timestep_power": sampling.timestep_power,
            "zero_init_steps": sampling.zero_init_steps,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
        }
    return settings | {
        "beta_start": scheduler.beta_start,
        "beta_end": scheduler.beta_end,
        "beta_schedule": scheduler.beta_schedule,
        "prediction_type": scheduler.prediction_type,
        "use_flow_sigmas": False,
        # Missing keys would be replaced by the defaults of the other scheduler.
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
    }


def _pipeline_settings(config: Config, reader: PretrainedTextEncoder | None) -> dict[str, Any]:
    sampling = config.sampling
    # diffusers would take a list for a component
    start, end = sampling.guidance_interval
    low, high = config.distill.guidance_range or (None, None)
    return {
        "max_length": reader.max_length if reader else config.text_encoder.max_length,
        "text_summary": reader.summary if reader else None,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_start": start,
        "guidance_end": end,
        "guidance_type": sampling.guidance_type,
        "guidance_rescale": sampling.guidance_rescale,
        "apg_eta": sampling.apg_eta,
        "apg_threshold": sampling.apg_threshold,
        "apg_momentum": sampling.apg_momentum,
        "guidance_low": low,
        "guidance_high": high,
    }


# ---- writing -----------------------------------------------------------------------------------


def _write_network(
    code: Path, source: str, settings: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    _write(code, source)
    _write_json(code.parent / "config.json", settings)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, code.parent / NETWORK_WEIGHTS, {"format": "pt"})


def _write_tokenizer(folder: Path, tokenizer: CaptionTokenizer) -> None:
    """The built-in tokenizer in transformers format: <start>, tokens, padding."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    own.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, own.token_to_id(START))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=own,
        bos_token=START,
        pad_token=PAD,
        model_max_length=tokenizer.max_length,
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,  # "<pad>" in a prompt is text
        add_prefix_space=True,  # transformers 4 would remove it from the tokenizer
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    _name_fast_tokenizer(folder)


def _copy_text_encoder(
    folder: Path, reader: PretrainedTextEncoder, dtype: torch.dtype
) -> dict[str, list[str]]:
    """The part of a pretrained text encoder that is used (CLIP's text model, T5's encoder)."""
    reader.load(torch.device("cpu"), dtype)
    reader.model.save_pretrained(folder / "text_encoder")
    if reader.tower:
        _name_tower(folder / "text_encoder" / "model.safetensors")
    reader.tokenizer.save_pretrained(folder / "tokenizer")
    kind = type(reader.tokenizer).__name__
    if kind == "TokenizersBackend":
        kind = FAST_TOKENIZER
        _name_fast_tokenizer(folder / "tokenizer")
    encoder = type(reader.model).__name__
    reader.unload()
    return {"text_encoder": ["transformers", encoder], "tokenizer": ["transformers", kind]}


def _name_tower(path: Path) -> None:
    """Rename the weights of CLIP's text model so that transformers 4 and 5 both load them: with the
    names that 5 writes, 4 would silently use random weights."""
    weights = load_file(path)
    inner = "text_model."
    named = {inner + name.removeprefix(inner): tensor for name, tensor in weights.items()}
    save_file(named, path, {"format": "pt"})


def _name_fast_tokenizer(folder: Path) -> None:
    """Use a class name that transformers 4 and 5 both know; 5 writes a new one."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, settings | {"tokenizer_class": FAST_TOKENIZER})


def _copy_autoencoder(folder: Path, space: PretrainedAutoencoder | IdentityAutoencoder) -> None:
    """Copy its files unchanged, to keep the fingerprint; convert .bin weights to safetensors."""
    assert isinstance(space, PretrainedAutoencoder)
    files = weight_files(space.folder)
    folder.mkdir(parents=True)
    if any(path.suffix == WEIGHTS[0] for path in files):
        for path in files:
            shutil.copyfile(path, folder / path.name)
        _forget_place(folder / "config.json")
        return
    space.load(torch.device("cpu"), torch.float32)
    space.model.save_pretrained(folder)
    space.unload()
    shutil.copyfile(space.folder / "config.json", folder / "config.json")
    _forget_place(folder / "config.json")


def _forget_place(path: Path) -> None:
    """Reduce the path in `_name_or_path`, which diffusers records, to its last component."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    place = settings.get("_name_or_path")
    if isinstance(place, str) and (shown := shown_place(place)) != place:
        _write_json(path, settings | {"_name_or_path": shown})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _versions() -> dict[str, str]:
    """Library versions, as diffusers records them. Raises LimnerError if a library is missing."""
    try:
        import diffusers
        import transformers
    except ImportError:
        raise LimnerError(
            "the diffusers format requires the packages diffusers and transformers; run pip "
            'install "limner[pretrained]"'
        ) from None
    return {
        "_diffusers_version": diffusers.__version__,
        "_limner_version": __version__,
        "_torch_version": torch.__version__,
        "_transformers_version": transformers.__version__,
    }
