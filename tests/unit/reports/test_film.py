"""The film of the previews."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from limner.reports.film import BAR, FRAMES, LAST, film_of


def previews(folder: Path, count: int, size: tuple[int, int] = (40, 20)) -> list[tuple[int, Path]]:
    found = []
    for i in range(count):
        path = folder / f"step-{i + 1:06d}.png"
        Image.new("RGB", size, (250 - 200 * i // count, 240 * (i // 3 % 2), 20)).save(path)
        found.append((i + 1, path))
    return found


def frames(data: bytes) -> list[Image.Image]:
    film = Image.open(io.BytesIO(data))
    found = []
    for i in range(film.n_frames):
        film.seek(i)
        found.append(film.convert("RGB"))
    return found


def test_each_preview_is_a_frame_with_a_bar_that_grows(tmp_path: Path) -> None:
    data = film_of(previews(tmp_path, 4))
    assert data is not None
    film = Image.open(io.BytesIO(data))
    assert film.format == "WEBP"
    shown = frames(data)
    assert [frame.size for frame in shown] == [(40, 20 + BAR)] * 4
    red = [np.asarray(frame)[:20, :, 0].mean() for frame in shown]
    assert np.allclose(red, [250, 200, 150, 100], atol=6)
    blue = [np.asarray(frame)[20 + BAR // 2, :, 0] < 130 for frame in shown]  # what is filled
    assert [round(float(row.mean()), 1) for row in blue] == [0.2, 0.5, 0.8, 1.0]
    assert film.info["loop"] == 0


def test_of_many_an_even_selection_with_the_last_is_shown(tmp_path: Path) -> None:
    data = film_of(previews(tmp_path, 3 * FRAMES, (32, 16)))
    assert data is not None
    shown = frames(data)
    assert len(shown) == FRAMES
    assert abs(np.asarray(shown[-1])[:16, :, 0].mean() - 51) < 8
    film = Image.open(io.BytesIO(data))
    film.seek(FRAMES - 1)
    film.load()
    assert film.info["duration"] == LAST


def test_large_and_changed_sizes_make_one_film(tmp_path: Path) -> None:
    some = previews(tmp_path, 2, (2000, 1000))
    Image.new("RGB", (300, 100)).save(some[1][1])
    data = film_of(some)
    assert data is not None
    assert {frame.size for frame in frames(data)} == {(1000, 500 + BAR)}


def test_without_two_readable_previews_there_is_none(tmp_path: Path) -> None:
    some = previews(tmp_path, 2)
    some[0][1].write_bytes(b"no image")
    assert film_of(some) is None
    assert film_of([]) is None


def test_damaged_and_enormous_images_are_left_out(tmp_path: Path) -> None:
    some = previews(tmp_path, 4)
    data = some[0][1].read_bytes()
    place = data.rindex(b"IEND")
    some[0][1].write_bytes(data[:place] + b"\x00\x01\x02\x03" + data[place + 4 :])
    Image.new("1", (20_000, 20_000)).save(some[1][1])  # a decompression bomb
    film = film_of(some)
    assert film is not None
    assert len(frames(film)) in (2, 3)
