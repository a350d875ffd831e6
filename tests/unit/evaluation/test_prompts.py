"""Which prompts are drawn to be measured."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from limner.config import Config
from limner.data.dataset import Row
from limner.evaluation.prompts import Plan, plan_of
from limner.evaluation.splits import Split

Build = Callable[..., Config]


def planned(config: Config, held_out: int, name: str = "photos") -> tuple[Plan, list[str]]:
    def rows(count: int) -> SimpleNamespace:
        every = [Row(str(i), (f"picture {i}",)) for i in range(count)]
        return SimpleNamespace(rows=every, buckets=None)

    data: Any = SimpleNamespace(
        set=SimpleNamespace(name=name), trained=rows(1000), held_out=rows(held_out)
    )
    events = list[str]()
    return plan_of(config, data, events), events


def test_few_captions_are_drawn_four_times_at_most_and_why_is_said(tiny_config: Build) -> None:
    plan, (said,) = planned(tiny_config(), 14)
    assert len(plan.measured) == 56
    assert set(Counter(d.prompt for d in plan.measured).values()) == {4}
    assert len({d.seed for d in plan.measured}) == 56
    assert said.startswith("56 images were generated for the distances, 4 of each of the 14 held-")
    assert "less certain" in said
    assert "evaluation.num_images=500" in said


@pytest.mark.parametrize(("captions", "count"), [(1, 4), (124, 496), (125, 500), (900, 500)])
def test_many_captions_are_drawn_five_hundred_times(
    captions: int, count: int, tiny_config: Build
) -> None:
    plan, said = planned(tiny_config(), captions)
    assert len(plan.measured) == count
    assert bool(said) is (count < 500)


def test_a_number_that_was_set_is_drawn(tiny_config: Build) -> None:
    for number in (5, 500):
        plan, said = planned(tiny_config(f"evaluation.num_images={number}"), 14)
        assert len(plan.measured) == number
        assert said == []


@pytest.mark.parametrize("name", ["emoji", "shapes"])
def test_the_built_in_sets_stay_as_they_were_published(name: str, tiny_config: Build) -> None:
    plan, said = planned(tiny_config(), 39, name)
    assert (len(plan.measured), len({d.prompt for d in plan.measured})) == (500, 39)
    assert said == []


def test_without_held_out_captions_it_is_the_trained_ones_that_are_counted(
    tiny_config: Build,
) -> None:
    plan, _ = planned(tiny_config(), 0)
    assert (plan.split, len(plan.measured)) == (Split.TRAINED, 500)
