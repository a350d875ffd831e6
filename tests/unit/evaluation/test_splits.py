"""Where a prompt is from, as files and sentences say it."""

import json

from limner.evaluation.splits import OF_DATA, Split, adjective


def test_files_hold_the_plain_words() -> None:
    assert json.dumps([*Split]) == '["trained", "held out", "free"]'
    assert json.dumps(dict.fromkeys(OF_DATA, 1)) == '{"trained": 1, "held out": 1}'
    assert f"{Split.HELD_OUT}" == "held out"
    assert [split.key for split in OF_DATA] == ["trained", "held_out"]


def test_each_has_a_heading_and_what_it_means() -> None:
    assert Split.HELD_OUT.heading == "Held-out prompts"
    assert Split("free").heading == "Free prompts"
    assert all(split.meaning for split in Split)


def test_before_a_noun_a_value_and_a_key_say_the_same() -> None:
    assert [adjective(split) for split in Split] == ["training", "held-out", "free"]
    assert adjective("held_out") == adjective("held out")
    assert Split.TRAINED.heading == "Training prompts"
