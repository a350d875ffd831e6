"""The data set "emoji": what it holds, how it names it, and what it never trains on."""

import pickle

import numpy as np
import pytest

from limner.data.builtin import emoji as emoji_module
from limner.data.builtin.emoji import (
    DEMO_PLAIN,
    DEMO_TONED,
    SKIN_TONES,
    EmojiImages,
    held_out_tone,
    split_tones,
)
from limner.data.dataset import ImageError, Row
from limner.errors import LimnerError


@pytest.fixture(scope="module")
def everything():
    return EmojiImages("all", ["all"])


@pytest.fixture(scope="module")
def demo():
    return EmojiImages("demo")


def by_key(images):
    return {row.key: row for row in images.rows}


def test_all_has_every_picture_that_has_a_name(everything):
    assert len(everything.rows) >= 3900
    assert len(by_key(everything)) == len(everything.rows)
    assert all(row.captions[0] for row in everything.rows)
    names = [row.captions[0] for row in everything.rows]
    assert len(set(names)) == len(names)


def test_each_row_has_exactly_its_own_file(everything, demo):
    """Never another picture that stands in for one that is missing."""
    folder = emoji_module._svg_folder()
    assert all((folder / f"{row.key}.svg").is_file() for row in everything.rows)
    rows = by_key(everything)
    assert rows["1f469-1f3fe-200d-1f680"].captions[0] == "woman astronaut, medium-dark skin tone"
    assert rows["1f441-200d-1f5e8"].captions[0] == "eye in speech bubble"
    assert not {refused.key for refused in everything.refused} & set(rows)
    assert demo.refused == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("1f34e", ["red apple", "apple", "红苹果", "manzana roja"]),
        ("1f44d", ["thumbs up", "+1", "拇指向上", "большой палец вверх"]),
        (
            "1f44d-1f3ff",
            [
                "thumbs up, dark skin tone",
                "+1, dark skin tone",
                "拇指向上，较深肤色",
                "pulgar hacia arriba, tono de piel oscuro",
                "サムズアップ、濃い肌色",
                "올린 엄지, 검은색 피부",
                "большой палец вверх, очень темный тон кожи",
            ],
        ),
        ("1f468-1f3ff-200d-1f9b0", ["man, dark skin tone, red hair", "男人，较深肤色，红发"]),
        (
            "1f469-1f3fd-200d-1f91d-200d-1f468-1f3ff",
            [
                "woman and man holding hands, medium skin tone, dark skin tone",
                "手拉手的一男一女，中等肤色，较深肤色",
                "mujer y hombre de la mano, tono de piel medio, tono de piel oscuro",
                "mann und frau halten hände, mittlere hautfarbe, dunkle hautfarbe",
            ],
        ),
        ("1f1e8-1f1f3", ["China", "flag for China", "中国"]),
        ("30-20e3", ["keycap 0", "zero", "按键 0"]),
        ("1f3fb", ["light skin tone", "较浅肤色"]),
    ],
)
def test_names_are_what_people_write(everything, key, expected):
    captions = by_key(everything)[key].captions
    assert captions[0] == expected[0]
    assert set(expected) <= set(captions)


def test_captions_do_not_repeat_or_keep_the_shape_of_a_code(everything):
    for row in everything.rows:
        folded = [caption.casefold() for caption in row.captions]
        assert len(set(folded)) == len(folded)
        assert all(caption == caption.strip() and "_" not in caption for caption in row.captions)


def test_an_alias_is_never_the_name_of_another_picture(everything):
    """ ":cat:" is the name of the whole cat and an alias of the cat's face."""
    names = {row.captions[0].casefold(): row.key for row in everything.rows}
    for row in EmojiImages("all", ["en"]).rows:
        assert all(names.get(caption.casefold(), row.key) == row.key for caption in row.captions)


@pytest.mark.parametrize("subset", ["demo", "all"])
def test_a_held_out_subject_is_trained_in_its_other_five_forms(subset):
    images = EmojiImages(subset)
    trained = {row.key for row in images.rows if row.held_out is False}
    forms_of: dict[str, set[tuple[str, ...]]] = {}
    for key in trained:
        subject, tones = split_tones(key)
        forms_of.setdefault(subject, set()).add(tuple(tones))
    held_out = [row.key for row in images.rows if row.held_out]
    assert held_out
    for key in held_out:
        subject, tones = split_tones(key)
        others = {(), *((tone,) for tone in SKIN_TONES)} - {tuple(tones)}
        assert others <= forms_of[subject]
    assert {row.held_out for row in images.rows} == {True, False}


@pytest.mark.parametrize("subset", ["demo", "all"])
def test_every_tone_is_trained_with_most_subjects_and_held_out_with_some(subset):
    for tone in SKIN_TONES:
        rows = [row for row in EmojiImages(subset).rows if split_tones(row.key)[1] == [tone]]
        share = sum(row.held_out is True for row in rows) / len(rows)
        assert 0.08 <= share <= 0.25


def test_no_held_out_picture_is_trained_under_another_name(everything):
    """A few of the artwork's files are the same drawing twice."""
    trained = {
        everything.load(row, 24).tobytes() for row in everything.rows if row.held_out is False
    }
    held_out = [row for row in everything.rows if row.held_out]
    assert not [row.key for row in held_out if everything.load(row, 24).tobytes() in trained]


def test_the_split_never_changes(demo, everything):
    """Figures of different versions are comparable only while the same pairs are held out."""
    assert held_out_tone("1f44d") == "1f3ff"
    assert held_out_tone("1f385") == "1f3fb"
    whole = by_key(everything)
    assert all(whole[row.key].held_out == row.held_out for row in demo.rows)


def test_demo_is_the_two_tables(demo):
    assert 320 <= len(demo.rows) <= 340
    assert len(demo.rows) == 6 * len(DEMO_TONED) + len(DEMO_PLAIN)
    assert sum(row.held_out is True for row in demo.rows) >= 36
    drawn = {demo.load(row, 32).tobytes() for row in demo.rows}
    assert len(drawn) == len(demo.rows)


def test_a_name_that_the_demo_asks_for_and_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(emoji_module, "DEMO_PLAIN", ("purple apple",))
    with pytest.raises(LimnerError, match="purple apple"):
        EmojiImages("demo")


def test_the_description_counts(demo):
    assert str(len(demo.rows)) in demo.description
    assert str(sum(row.held_out is True for row in demo.rows)) in demo.description


def test_twice_the_same_and_picklable(demo):
    assert EmojiImages("demo").rows == demo.rows
    copy = pickle.loads(pickle.dumps(demo))
    assert np.array_equal(copy.load(demo.rows[0], 32), demo.load(demo.rows[0], 32))


@pytest.mark.parametrize("image_size", [32, 64])
def test_load_draws_on_white(demo, image_size):
    for row in demo.rows[::25]:
        image = demo.load(row, image_size)
        assert image.shape == (image_size, image_size, 3)
        assert image.dtype == np.uint8
        assert (image == 255).all(axis=-1).mean() > 0.05
        assert image.std() > 10


def test_a_file_that_is_not_square_is_padded(demo):
    """The watermelon's file is 36 by 25."""
    image = demo.load(by_key(demo)["1f349"], 36)
    assert image.shape == (36, 36, 3)
    assert (image[:5] == 255).all()
    assert (image[-5:] == 255).all()


def test_tones_of_a_subject_look_different(demo):
    rows = by_key(demo)
    mean = [rows_mean(demo, rows[f"1f44d-{tone}"]) for tone in SKIN_TONES]
    assert mean == sorted(mean, reverse=True)  # light to dark
    assert mean[0] - mean[-1] > 20


def rows_mean(images, row):
    return float(images.load(row, 32).mean())


def test_a_picture_that_is_not_there_is_named(demo):
    with pytest.raises(ImageError, match="1f44d-0000"):
        demo.load(Row("1f44d-0000", ("nothing",)), 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("some",), "use demo or all"), (("demo", ["en", "xx"]), '"xx".*zh')],
)
def test_unknown_subset_or_language_lists_the_known(arguments, message):
    with pytest.raises(LimnerError, match=message):
        EmojiImages(*arguments)


def test_english_comes_first_even_when_it_is_not_asked_for():
    row = by_key(EmojiImages("demo", ["zh"]))["1f34e"]
    assert row.captions[0] == "red apple"
    assert "红苹果" in row.captions
