"""What draw.py of an ONNX folder is made of, piece by piece, as Limner's own pieces are."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from written_texts import captions_of_many_scripts, texts_of_all_scripts

from limner.apps.onnx_folder.runner import guidance, noise, paths, solvers, tokens
from limner.config import SamplingConfig
from limner.diffusion.guidance import combination
from limner.diffusion.noise_schedule import FlowMatchingSchedule, NoiseSchedule, VPSchedule
from limner.diffusion.solvers import SOLVERS
from limner.inference.sampling_settings import inference_timesteps
from limner.text.tokenizer import CaptionTokenizer

FLOW = {"objective": "flow_matching", "num_train_timesteps": 500}
BETAS = {
    "objective": "diffusion",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
KINDS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PATHS: dict[str, tuple[NoiseSchedule, dict[str, Any], dict[str, Any]]] = {
    "flow": (
        FlowMatchingSchedule(500),
        FLOW,
        {"shift": 1.7, "timestep_power": 1.3, "zero_init_steps": 1},
    ),
    **{
        kind: (VPSchedule(1000, 1e-4, 0.02, kind), {**BETAS, "beta_schedule": kind}, {})
        for kind in KINDS
    },
}


@pytest.mark.parametrize("count", [16, 108, 3 * 64 * 64])
def test_seeds_give_the_noise_of_torch(count: int) -> None:
    for seed in (0, 1, 42, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1):
        theirs, own = torch.Generator().manual_seed(seed), np.random.RandomState(seed % 2**32)
        for _ in range(3):
            wanted = torch.randn(count, generator=theirs).numpy()
            assert np.abs(noise.normal(own, count) - wanted).max() < 2e-6


def test_prompts_become_the_tokens_of_limner() -> None:
    tokenizer = CaptionTokenizer.learn(captions_of_many_scripts(), 400, 24)
    own = tokens.OwnTokenizer(json.loads(tokenizer.tokenizer.to_str())["model"], 24)
    texts = [*texts_of_all_scripts(5000), "a \ud800 b"]
    assert [t for t in texts if own(t) != [i for i in tokenizer(t).tolist() if i]] == []
    assert [t for t in texts if own.length(t) != tokenizer.length(t)] == []
    assert max(map(own.length, texts)) > 24


def test_a_library_reads_what_limner_does_not(tmp_path: Any) -> None:
    tokenizer = CaptionTokenizer.learn(captions_of_many_scripts(), 400, 24)
    tokenizer.save(tmp_path / "tokenizer.json")
    settings = {"tokenizer": "tokenizers", "max_length": 24, "start": [1], "empty": None}
    own = tokens.tokenizer_of(tmp_path, settings)
    for text in texts_of_all_scripts(200):
        assert own(text) == [i for i in tokenizer(text).tolist() if i]
        assert own.length(text) == tokenizer.length(text)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solvers_take_the_steps_of_limner(solver: str, name: str) -> None:
    # Of a denoiser that says something else at each time and place, so that every weight counts.
    theirs, settings, changes = PATHS[name]
    sampling = SamplingConfig(num_inference_steps=7, **changes)
    times = inference_timesteps(sampling, theirs)
    own = paths.schedule_of(settings)
    assert own.times(sampling.model_dump()) == pytest.approx(times.tolist(), rel=1e-12)
    streams = [torch.Generator().manual_seed(3) for _ in range(2)]
    there = SOLVERS[solver](
        lambda x, time: torch.tanh(3 * x + time / 150),
        torch.randn(1, 3, 4, 4, generator=streams[0]),
        times,
        theirs,
        lambda _: torch.randn(1, 3, 4, 4, generator=streams[0]),
    )
    here = solvers.SOLVERS[solver](
        lambda x, time: np.tanh(3 * x + np.float32(time / 150)),
        torch.randn(1, 3, 4, 4, generator=streams[1]).numpy(),
        own.times(sampling.model_dump()),
        own,
        lambda: torch.randn(1, 3, 4, 4, generator=streams[1]).numpy(),
    )
    assert here.dtype == np.float32
    scale = max(1.0, there.abs().max().item())
    assert np.abs(here - there.numpy()).max() < 3e-5 * scale


@pytest.mark.parametrize("name", KINDS)
def test_the_path_of_diffusion_is_that_of_limner(name: str) -> None:
    theirs, settings, _ = PATHS[name]
    own = paths.schedule_of(settings)
    for time in (-1.0, 0.0, 1.0, 500.0, 998.0, 999.0):
        at = torch.tensor([time], dtype=torch.float64)
        for key in ("alpha", "sigma", "log_snr", "ode_sigma"):
            wanted = getattr(theirs, key)(at).item()
            found = getattr(own, key)(time)
            assert found == wanted or math.isclose(found, wanted, rel_tol=1e-9), (key, time)


@pytest.mark.parametrize("kind", guidance.GUIDANCE)
def test_guidance_combines_as_limner_does(kind: str) -> None:
    changes = {"guidance_scale": 4.0, "guidance_type": kind, "guidance_rescale": 0.7}
    changes |= {"apg_eta": 0.3, "apg_threshold": 0.5, "apg_momentum": -0.4}
    sampling = SamplingConfig(**changes)
    theirs, own = combination(sampling), guidance.GUIDANCE[kind](sampling.model_dump())
    random = torch.Generator().manual_seed(0)
    for _ in range(3):  # one of them remembers earlier steps
        x, x0, away = torch.randn(3, 2, 3, 4, 4, generator=random).unbind(0)
        wanted = theirs(x, x0, away).numpy()
        moved = own(x.numpy(), x0.numpy(), away.numpy())
        found = guidance.rescaled(moved, x0.numpy(), 0.7)
        assert np.abs(found - wanted).max() < 1e-5
