"""docs/how-it-works.md says what the code does: its numbers, its names, and its figures."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from shown import shape_of

from limner.config import load_config
from limner.data.order import position_of, spread_evenly
from limner.training.loss_weighting import BINS
from limner.training.monitor.heldout import LEVELS
from limner.training.muon import orthogonalise

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "how-it-works.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """docs/figures/make.py, writing into a folder of its own."""
    before = list(sys.path)
    sys.path.insert(0, str(DOCS / "figures"))
    spec = importlib.util.spec_from_file_location("make_figures", DOCS / "figures" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TO = tmp_path_factory.mktemp("figures")
    yield module
    sys.path[:] = before


def test_the_figures_of_the_code_alone_are_what_it_draws_today(make: ModuleType) -> None:
    make.noise_levels()
    make.training_times()
    make.over_the_run()
    made = sorted(path.name for path in make.TO.iterdir())
    assert made == ["average.svg", "noise-levels.png", "over-the-run.svg", "training-times.svg"]
    for name in made:
        new, kept = make.TO / name, DOCS / "images" / "how" / name
        if name.endswith(".svg"):
            assert new.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8"), (
                f"{name} is not what the code draws: run python docs/figures/make.py"
            )
        else:
            a, b = (np.array(Image.open(p)).astype(float) for p in (new, kept))
            assert np.abs(a - b).mean() < 1


def test_both_languages_say_the_same_in_the_same_order() -> None:
    chinese = (DOCS / "how-it-works.zh-CN.md").read_text(encoding="utf-8")
    assert shape_of(TEXT) == shape_of(chinese)
    for pattern in (r"^\$\$.*\$\$$", r"(?<!\$)\$[^$\n]+\$(?!\$)", r"\[arXiv [^)]*\)"):
        english, other = (re.findall(pattern, text, re.MULTILINE) for text in (TEXT, chinese))
        assert len(english) > 5
        # In a sentence of another language they may come in another order.
        assert sorted(english) == sorted(other)


def test_every_figure_is_shown_and_every_name_is_in_the_file_beside_it() -> None:
    shown = set(re.findall(r"images/how/([\w.-]+)", TEXT))
    assert shown == {path.name for path in (DOCS / "images" / "how").iterdir()}
    for name, file in (
        ("training_timesteps", "diffusion/noise_schedule.py"),
        ("spread_evenly", "data/order.py"),
        ("def attention", "models/modern.py"),
    ):
        assert name.rpartition(" ")[2] in TEXT
        assert name in (DOCS.parent / "src" / "limner" / file).read_text(encoding="utf-8")


def test_the_numbers_in_the_formulas_are_the_defaults() -> None:
    config = load_config({})
    scheduler, training = config.scheduler, config.training
    start, end = scheduler.logit_mean, scheduler.logit_mean_end
    assert start is not None
    assert end is not None
    assert f"m = {start:g} + {end - start:g}\\,d" in TEXT
    assert rf"\mathcal{{N}}(m, {scheduler.logit_std:g})" in TEXT
    assert scheduler.uniform_share == 0.1
    assert "a tenth of them uniform" in TEXT
    assert f"`scheduler.level_balance`, {scheduler.level_balance:g})" in TEXT
    assert f"(in {BINS} bins of noise levels)" in TEXT
    assert rf"\min\left( {training.ema_decay:g},\ 2^{{-B / ({training.ema_ramp:g}\,n)}}" in TEXT
    assert training.caption_dropout == 0.1
    assert "One\ncaption in ten is replaced" in TEXT
    assert ", ".join(map(str, LEVELS[:-1])) + f", and {LEVELS[-1]}" in TEXT
    assert "`dpmsolver++`, the default" in TEXT
    assert config.sampling.scheduler_type == "dpmsolver++"


def test_the_formula_of_muon_is_the_one_that_is_computed() -> None:
    a, b, c = (
        float("".join(found))
        for found in re.findall(r"(-?) ?(\d\.\d{4})\\,", TEXT.partition("## The update")[2])
    )
    m = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    x = m / m.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    torch.testing.assert_close(orthogonalise(m[None])[0].float(), x, atol=0.03, rtol=0.03)


def test_the_order_is_what_the_text_says() -> None:
    # Each pass is a permutation, and another one.
    rows, seed = 7, 3
    first, second = ([position_of(n + p * rows, rows, seed) for n in range(rows)] for p in (0, 1))
    assert sorted(first) == sorted(second) == list(range(rows))
    assert first != second
    golden = (5**0.5 - 1) / 2
    for n in (0, 1, 1000):
        expected = (spread_evenly(0, seed) + n * golden) % 1
        assert spread_evenly(n, seed) == pytest.approx(expected, abs=1e-9)
