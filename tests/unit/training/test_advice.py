"""What a run is told about itself follows from its held-out losses."""

from limner.training.monitor.learning_curve import Measurement, advise


def curve(heldout: list[float], trained: list[float]) -> list[Measurement]:
    return [
        Measurement(100 * i, h, t) for i, (h, t) in enumerate(zip(heldout, trained, strict=True))
    ]


def test_a_run_that_learns_is_left_alone():
    assert advise(curve([9, 5, 3, 2, 1.5, 1.2], [9, 5, 3, 2, 1.4, 1.1])) is None


def test_a_run_that_does_not_learn_is_told_so():
    said = advise(curve([9, 9, 8.9, 9], [9, 8.9, 9, 9]))
    assert said is not None
    assert said.startswith("not learning")


def test_a_run_that_memorises_is_told_where_it_was_best():
    said = advise(curve([9, 5, 3, 3.5, 4, 5], [9, 5, 3, 2, 1, 0.5]))
    assert said is not None
    assert said.startswith("memorising")
    assert "step 200 (3)" in said


def test_getting_worse_at_everything_is_not_memorising():
    assert advise(curve([9, 5, 3, 3.5, 4, 5], [9, 5, 3, 3.5, 4, 5])) is None


def test_one_bad_measurement_is_no_verdict():
    assert advise(curve([9, 5, 3, 2, 2.6], [9, 5, 3, 2, 1.9])) is None


def test_it_is_told_at_which_noise_it_got_worse():
    heldout = [{"100": 1.0, "900": 5.0}, {"100": 1.0, "900": 3.0}, *[{"100": 1.5, "900": 2.9}] * 3]
    history = [
        Measurement(100 * i, sum(levels.values()) / 2, 4.0 - i, levels)
        for i, levels in enumerate(heldout)
    ]
    said = advise(history)
    assert said is not None
    assert "worse at timestep 100 of 1000" in said
