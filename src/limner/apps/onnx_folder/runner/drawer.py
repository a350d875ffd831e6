"""The model of a folder."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from limner.apps.onnx_folder.runner.guidance import GUIDANCE, rescaled
from limner.apps.onnx_folder.runner.noise import normal
from limner.apps.onnx_folder.runner.paths import Diffusion, FlowMatching, schedule_of
from limner.apps.onnx_folder.runner.solvers import SOLVERS, Array, Denoiser
from limner.apps.onnx_folder.runner.tokens import tokenizer_of

FORMAT = 1
SEEDS = 2**63
MIN_DIVISOR = 0.05
SETTINGS = (
    *("num_inference_steps", "scheduler_type", "guidance_scale", "guidance_interval"),
    *("guidance_type", "guidance_rescale", "shift", "timestep_power", "zero_init_steps"),
    *("apg_eta", "apg_threshold", "apg_momentum"),
)


class Drawer:
    """The model of a folder.

    Args:
        folder: with config.json and the ONNX files; None: where this file is.
        threads: of the processor, for a network; None: one for each core.

    Raises:
        ValueError: a file of the folder is missing or damaged.
        ImportError: a package is missing.
    """

    def __init__(self, folder: str | Path | None = None, threads: int | None = None) -> None:
        self.folder = Path(folder or Path(__file__).parent)
        self.config = self.read_json("config.json")
        if self.config.get("format") != FORMAT:
            found = self.config.get("format")
            raise ValueError(f"{self.folder} has format {found}; this draw.py reads {FORMAT}")
        for name, file in self.read_json("manifest.json")["files"].items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else None
            if name.endswith((".onnx", ".data")) and size != file["bytes"]:
                found = "is missing" if size is None else f"has {size:,} of {file['bytes']:,} bytes"
                raise ValueError(f"{path} {found}; copy the folder again")
        self.tokenizer = tokenizer_of(self.folder, self.config["text"])
        self.schedule = schedule_of(self.config["scheduler"])
        self.text_encoder = self.opened("text_encoder.onnx", threads)
        self.denoiser = self.opened("denoiser.onnx", threads)
        self.decoder = self.opened("decoder.onnx", threads) if self.config["decoder"] else None

    def __call__(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        num_images: int = 1,
        negative_prompt: str | None = None,
        batch_size: int = 4,
        **settings: Any,
    ) -> Array:
        """Draw `num_images` pictures of each prompt, with seeds that count up from `seed`.

        Args:
            negative_prompt: what guidance moves away from, instead of the empty prompt.
            batch_size: pictures drawn at once; they do not depend on it.
            settings: instead of those in config.json, by their names there (see `SETTINGS`).

        Returns:
            uint8 [prompts * num_images, height, width, 3].

        Raises:
            ValueError: an argument cannot be used; the message says why.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        sampling = self.settings(**settings)
        self.check(prompts, seed, num_images, negative_prompt)
        todo = [(p, (seed + i) % SEEDS) for p in prompts for i in range(num_images)]
        drawn = []
        for first in range(0, len(todo), max(1, batch_size)):
            some = todo[first : first + max(1, batch_size)]
            x = self.draw([p for p, _ in some], [s for _, s in some], negative_prompt, sampling)
            drawn.append(levels(self.decoded(x)))
        return np.concatenate(drawn)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The settings of config.json with those changes that are not None.

        Raises:
            ValueError: one is not known, out of range, or not of this model.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        for name in changes:
            if name not in SETTINGS:
                raise ValueError(f"unknown setting {name}; use one of {', '.join(SETTINGS)}")
        found = {**self.config["sampling"], **changes}
        steps, (low, high) = found["num_inference_steps"], found["guidance_interval"]
        needed = {
            "scheduler_type": (found["scheduler_type"] in SOLVERS, f"one of {', '.join(SOLVERS)}"),
            "guidance_type": (found["guidance_type"] in GUIDANCE, f"one of {', '.join(GUIDANCE)}"),
            "num_inference_steps": (1 <= steps <= self.schedule.most_steps, "1 or more"),
            "guidance_scale": (found["guidance_scale"] >= 0, "0 or more"),
            "guidance_interval": (0 <= low < high <= 1, "two shares, the first below the second"),
            "guidance_rescale": (0 <= found["guidance_rescale"] <= 1, "from 0 to 1"),
            "shift": (found["shift"] > 0, "above 0"),
            "timestep_power": (found["timestep_power"] > 0, "above 0"),
            "zero_init_steps": (0 <= found["zero_init_steps"] < steps, "below the steps"),
        }
        if self.config["flow_map"]:
            why = "; a distilled model takes steps of its own, with the guidance it learned"
            needed["scheduler_type"] = (found["scheduler_type"] in ("ddim", "euler"), f"ddim{why}")
            needed["guidance_scale"] = (found["guidance_scale"] == 1, f"1{why}")
            needed["zero_init_steps"] = (found["zero_init_steps"] == 0, f"0{why}")
        if isinstance(self.schedule, Diffusion):
            for name in ("shift", "timestep_power"):
                needed[name] = (found[name] == 1, "1 on a diffusion path")
            needed["zero_init_steps"] = (found["zero_init_steps"] == 0, "0 on a diffusion path")
            known = found["guidance_type"] in ("cfg", "apg")
            needed["guidance_type"] = (known, "cfg or apg on a diffusion path")
        for name, (is_right, wanted) in needed.items():
            if not is_right:
                raise ValueError(f"{name} is {found[name]}; it must be {wanted}")
        if self.config["flow_map"] and steps not in self.config["steps"]:
            known_steps = ", ".join(map(str, self.config["steps"]))
            warnings.warn(f"this model was distilled for {known_steps} steps", stacklevel=3)
        return found

    def check(self, prompts: list[str], seed: int, count: int, negative: str | None) -> None:
        """Raises ValueError if these cannot be drawn; warns of a prompt that is cut."""
        if not prompts:
            raise ValueError("there is no prompt")
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2^63 - 1")
        if count < 1:
            raise ValueError(f"num_images is {count}; it must be at least 1")
        if negative and self.config["flow_map"]:
            raise ValueError(
                "a distilled model takes no negative_prompt: its guidance was fixed when it was "
                "made"
            )
        most = self.config["text"]["max_length"]
        for prompt in dict.fromkeys([*prompts, negative or ""]):
            if not isinstance(prompt, str):
                raise ValueError(f"a prompt must be text, not {type(prompt).__name__}")
            if (length := self.tokenizer.length(prompt)) > most:
                warnings.warn(
                    f"a prompt of {length} tokens was truncated to {most}: {prompt[:60]}",
                    stacklevel=3,
                )

    def draw(
        self, prompts: list[str], seeds: list[int], negative: str | None, sampling: dict[str, Any]
    ) -> Array:
        """Pictures or latents of one batch, float32 [n, C, h, w]."""
        count, shape = len(prompts), self.config["shape"]
        streams = [np.random.RandomState(seed % 2**32) for seed in seeds]

        def noise() -> Array:
            return np.stack([normal(stream, math.prod(shape)).reshape(shape) for stream in streams])

        times = self.schedule.times(sampling)
        if self.config["flow_map"]:
            denoise = self.flow_map(self.read(prompts), times)
        else:
            texts = self.read([*prompts, negative or ""])
            text = {name: rows[:count] for name, rows in texts.items()}
            null = {name: np.repeat(rows[count:], count, 0) for name, rows in texts.items()}
            denoise = self.guided(text, null, sampling)
        return SOLVERS[sampling["scheduler_type"]](denoise, noise(), times, self.schedule, noise)

    def read(self, prompts: list[str]) -> dict[str, Array]:
        """What the denoiser is told of the prompts, by the names of its inputs, a row each."""
        rows = [self.tokenizer(prompt) for prompt in prompts]
        longest, text = max(map(len, rows)), self.config["text"]
        ids = np.full((len(rows), longest), text["padding"], np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        wanted = {one.name for one in self.text_encoder.get_inputs()}
        given = {"ids": ids, "attention_mask": mask}
        names = [one.name for one in self.text_encoder.get_outputs()]
        found = self.text_encoder.run(None, {name: given[name] for name in wanted})
        return dict(zip(names, found, strict=True))

    def predicted(self, x: Array, time: float, text: dict[str, Array], **others: Array) -> Array:
        """x_0 by what the network puts out, float32 [n, C, h, w]."""
        t = np.full(len(x), time, np.float32)
        output = self.denoiser.run(None, {"x": x, "t": t, **text, **others})[0]
        alpha, sigma = self.schedule.alpha(float(t[0])), self.schedule.sigma(float(t[0]))
        kind = self.config["prediction_type"]
        if kind == "sample":
            return output
        if kind == "velocity":
            return x - sigma * output
        if kind == "v_prediction":
            return alpha * x - sigma * output
        if isinstance(self.schedule, FlowMatching):  # noise says nothing of a picture without one
            alpha = max(alpha, MIN_DIVISOR)
        return (x - sigma * output) / alpha

    def guided(
        self, text: dict[str, Array], null: dict[str, Array], sampling: dict[str, Any]
    ) -> Denoiser:
        """With guidance (Ho & Salimans 2022, arXiv 2207.12598) at the times of its interval."""
        both = {name: np.concatenate([rows, null[name]]) for name, rows in text.items()}
        low, high = (share * self.schedule.last for share in sampling["guidance_interval"])
        combine = GUIDANCE[sampling["guidance_type"]](sampling)
        rescale = sampling["guidance_rescale"]

        def denoise(x: Array, time: float) -> Array:
            if sampling["guidance_scale"] == 1 or not low <= time <= high:
                return self.predicted(x, time, text)
            x0, away = np.split(self.predicted(np.concatenate([x, x]), time, both), 2)
            moved = combine(x, x0, away)
            return rescaled(moved, x0, rescale) if rescale else moved

        return denoise

    def flow_map(self, text: dict[str, Array], times: list[float]) -> Denoiser:
        """Of a distilled model, which is told how long its step is (`limner distill`)."""
        spans = {now: now - after for now, after in pairwise(times)}

        def denoise(x: Array, time: float) -> Array:
            return self.predicted(x, time, text, span=np.full(len(x), spans[time], np.float32))

        return denoise

    def decoded(self, x: Array) -> Array:
        """Pictures [n, 3, height, width] of latents, one after the other, to save memory."""
        if self.decoder is None:
            return x
        return np.concatenate([self.decoder.run(None, {"latents": one[None]})[0] for one in x])

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{self.folder / name} is missing; copy the folder again") from None
        except ValueError as error:
            raise ValueError(f"{self.folder / name} is damaged: {error}") from None

    def opened(self, name: str, threads: int | None) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError(
                "the package onnxruntime is missing; pip install onnxruntime"
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            providers = ["CPUExecutionProvider"]
            return onnxruntime.InferenceSession(str(self.folder / name), options, providers)
        except Exception as error:  # its own classes of errors differ between versions
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{self.folder / name} cannot be opened: {reason}") from None


def levels(x: Array) -> Array:
    """[n, 3, h, w] of about -1 to 1 -> uint8 [n, h, w, 3]."""
    whole = np.rint((np.clip(x, -1, 1).astype(np.float32) + 1) * np.float32(127.5))
    return np.ascontiguousarray(whole.astype(np.uint8).transpose(0, 2, 3, 1))
