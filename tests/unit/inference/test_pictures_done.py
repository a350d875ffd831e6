"""How far drawing is, as it is shown."""

import torch

from limner.inference.sampling import pictures_done


def test_batches_count_one_after_the_other_and_by_their_steps() -> None:
    told = list[tuple[float, int]]()
    progress = pictures_done(lambda *numbers: told.append(numbers), 5, 1)
    for size in (2, 2):
        for step in (1, 2):
            progress(step, 2, torch.zeros(size, 1, 1, 1))
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_batch_that_was_filled_up_counts_no_more_than_there_are() -> None:
    told = list[tuple[float, int]]()
    pictures_done(lambda *numbers: told.append(numbers), 3)(2, 2, torch.zeros(4, 1, 1, 1))
    assert told == [(3, 3)]
