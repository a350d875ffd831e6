"""Which runs `limner watch` shows, how it reads them, and what it says of them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from made_up_run import made_up_run, noise
from PIL import Image

from limner.apps.watch.runs import LiveLog, LiveRun, find_runs, names_of
from limner.apps.watch.view import contents, in_order, summary
from limner.errors import LimnerError
from limner.files.folder_lock import TRAINING, FolderLock, is_written_by
from limner.inference.contact_sheet import contact_sheet, save_contact_sheet
from limner.reports.run_folder import read_run
from limner.reports.run_report import figures


def line(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "images": 4 * step, "seconds": step / 2.0, **values}


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)


# Finding them


def test_runs_are_found_by_themselves_and_in_a_folder(tmp_path: Path) -> None:
    old, new = made_up_run(tmp_path / "old"), made_up_run(tmp_path / "new")
    os.utime(old / "log.jsonl", (1, 1))
    (tmp_path / "photos").mkdir()
    assert find_runs([tmp_path]) == [new, old]
    assert find_runs([old]) == [old]
    assert find_runs([old, tmp_path]) == [old, new]
    with FolderLock(tmp_path / "begun", "wait", TRAINING):  # nothing is logged yet
        assert tmp_path / "begun" in find_runs([tmp_path])


def test_no_run_is_an_error_that_says_what_a_run_is(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(LimnerError, match=rf"{place.name} .*use a run folder"):
            find_runs([place])


def test_names_are_as_short_as_they_can_be() -> None:
    paths = [Path("/a/one"), Path("/a/two")]
    assert list(names_of(paths)) == ["one", "two"]
    alike = [Path("/a/one/run"), Path("/b/one/run"), Path("/b/two/run")]
    assert names_of(alike) == dict(zip(["a/one/run", "b/one/run", "b/two/run"], alike, strict=True))


# Reading them again


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    log = LiveLog(tmp_path / "log.jsonl")
    assert not log.read()
    append(log.path, line(1), line(2))
    assert log.read()
    first = log.lines[0]
    assert not log.read()
    append(log.path, line(3))
    assert log.read()
    assert [one["step"] for one in log.lines] == [1, 2, 3]
    assert log.lines[0] is first


def test_half_a_line_waits_for_the_other_half(tmp_path: Path) -> None:
    log = LiveLog(tmp_path / "log.jsonl")
    text = json.dumps(line(1)) + "\n" + "no json\n[1]\n" + json.dumps(line(2, note="红")) + "\n"
    data = text.encode()
    for cut in range(len(data)):
        log.path.write_bytes(b"")
        log.read()
        with log.path.open("ab") as file:
            file.write(data[:cut])
        log.read()
        with log.path.open("ab") as file:
            file.write(data[cut:])
        log.read()
        assert [one["step"] for one in log.lines] == [1, 2], cut


def test_a_log_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    log = LiveLog(tmp_path / "log.jsonl")
    append(log.path, *map(line, range(1, 5)))
    log.read()
    staging = tmp_path / "staging"  # as a resumed run does it, which drops what came later
    append(staging, line(1), line(2), line(3, loss=7.0), line(4), line(5))
    os.replace(staging, log.path)
    assert log.read()
    assert [one.get("loss") for one in log.lines] == [None, None, 7.0, None, None]
    log.path.unlink()
    assert log.read()
    assert log.lines == []


def test_a_log_that_was_written_anew_in_place_is_read_anew(tmp_path: Path) -> None:
    log = LiveLog(tmp_path / "log.jsonl")
    append(log.path, line(1, loss=1.0), line(2, loss=1.0))
    log.read()
    log.path.write_text("", "utf-8")  # the same file, as one that was replaced twice may seem
    append(log.path, line(1, loss=2.0), line(2, loss=2.0), line(3, loss=2.0))
    assert log.read()
    assert [one["loss"] for one in log.lines] == [2.0] * 3


def test_what_could_not_be_read_is_read_when_it_can_be(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    live, config = LiveRun("run", folder), (folder / "config.yaml").read_text("utf-8")
    version = live.look()[0]
    append(folder / "log.jsonl", {}, line(2000, loss=0.5))
    (folder / "config.yaml").write_text("a: [1,", "utf-8")
    for _ in range(2):
        with pytest.raises(LimnerError, match=r"config\.yaml"):
            live.look()
    (folder / "config.yaml").write_text(config, "utf-8")
    again, run, _ = live.look()
    assert again > version
    assert run.train[-1]["step"] == 2000


def test_the_version_grows_with_anything_that_is_shown(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    live = LiveRun("run", folder)
    seen = [live.look()[0]]
    assert live.look()[0] == seen[0]
    append(folder / "log.jsonl", {"kind": "x"})  # ends the half line
    for change in (
        lambda: append(folder / "log.jsonl", line(2000)),
        lambda: (folder / "previews" / "step-002000.png").write_bytes(b""),
        lambda: append(folder / "refused.jsonl", {"key": "b", "reason": "r"}),
        lambda: (folder / "results.json").unlink(),
    ):
        change()
        seen.append(live.look()[0])
    assert seen == sorted(set(seen))
    with FolderLock(folder, "wait", TRAINING):
        version, _, training = live.look()
        assert training
        assert version > seen[-1]
    assert not live.look()[2]


def test_who_was_killed_trains_no_longer(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "wait", TRAINING):
        assert is_written_by(tmp_path / TRAINING)
        told = json.loads((tmp_path / TRAINING).read_text("utf-8"))
    assert not is_written_by(tmp_path / TRAINING)
    dead = {**told, "pid": 2**22 + 1}
    (tmp_path / TRAINING).write_text(json.dumps(dead), encoding="utf-8")
    assert not is_written_by(tmp_path / TRAINING)
    away = {**told, "host": "another-machine"}  # its process cannot be seen, but the file is new
    (tmp_path / TRAINING).write_text(json.dumps(away), encoding="utf-8")
    assert is_written_by(tmp_path / TRAINING)
    os.utime(tmp_path / TRAINING, (1, 1))
    assert not is_written_by(tmp_path / TRAINING)


# What is said of them


def planned(folder: Path, *lines: dict[str, Any], **plan: Any) -> LiveRun:
    folder.mkdir()
    append(folder / "log.jsonl", {"kind": "plan", "step": 0, **plan}, *lines)
    return LiveRun("run", folder)


def test_the_time_left_is_that_of_what_ends_first(tmp_path: Path) -> None:
    rate = {"images_per_second": 8.0}
    by_time = planned(tmp_path / "a", line(100, **rate), max_seconds=200, max_steps=None)
    by_steps = planned(
        tmp_path / "b", line(100, **rate), max_seconds=2000, max_steps=140, images_per_step=4
    )
    for live, left, share in ((by_time, 150.0, 0.25), (by_steps, 20.0, 100 / 140)):
        with FolderLock(live.folder, "wait", TRAINING):
            said = summary(live)
        assert said["status"] == "training"
        assert said["seconds_left"] == pytest.approx(left)
        assert said["share_done"] == pytest.approx(share)
        assert summary(live)["status"] == "stopped"
        assert summary(live)["seconds_left"] is None


def test_a_run_that_came_to_its_end_is_finished(tmp_path: Path) -> None:
    steps = planned(tmp_path / "a", line(140), max_steps=140)
    minutes = planned(tmp_path / "b", line(10) | {"seconds": 198.5}, max_seconds=200)
    empty = planned(tmp_path / "c", max_steps=3)
    assert [summary(live)["status"] for live in (steps, minutes, empty)] == [
        "finished",
        "finished",
        "empty",
    ]


def test_passes_are_images_seen_over_those_there_are(tmp_path: Path) -> None:
    assert summary(planned(tmp_path / "a", line(10), training_images=16))["passes"] == 2.5
    assert summary(planned(tmp_path / "b", line(10)))["passes"] is None


def test_those_that_train_come_first_then_the_newest_and_empty_ones_are_last(
    tmp_path: Path,
) -> None:
    def run(name: str, when: float, *lines: dict[str, Any]) -> LiveRun:
        live = planned(tmp_path / name, *lines, max_steps=10)
        os.utime(tmp_path / name / "log.jsonl", (when, when))
        return live

    old, new = run("old", 100, line(10)), run("new", 200, line(5))
    empty, begun, longer = run("empty", 400), run("begun", 500), run("longer", 50, line(3))
    unreadable = {"name": "x", "version": -1, "status": "unreadable", "message": "why"}
    for live, name in zip((old, new, empty, begun, longer), range(5), strict=True):
        live.name = str(name)
    locks = [FolderLock(live.folder, "wait", TRAINING) for live in (begun, longer)]
    with locks[0], locks[1]:
        for live in (begun, longer):
            os.utime(live.folder / "log.jsonl", (50, 50))
        said = [unreadable, *map(summary, (empty, old, begun, new, longer))]
    names = [one["name"] for one in in_order(said)]
    assert names == ["4", "3", "1", "0", "x", "2"]


def test_example_prompts_are_those_set_or_drawn_or_previewed(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    drawn = json.loads((folder / "samples.json").read_text("utf-8"))

    def examples() -> list[str]:
        return contents(LiveRun("run", folder))["examples"]

    assert examples() == [one["prompt"] for one in drawn]
    (folder / "samples.json").unlink()
    assert examples() == [], "a preview of earlier versions does not say"
    sheet = contact_sheet([Image.new("RGB", (8, 8))] * 3, ["a", "", "红苹果"])
    save_contact_sheet(sheet, folder / "previews" / "step-001000.png", ["a", "", "红苹果"])
    assert examples() == ["a", "红苹果"]
    (folder / "config.yaml").write_text("training: {preview_prompts: [b, b]}\n", "utf-8")
    assert examples() == ["b"]
    (folder / "config.yaml").write_text("training: {preview_prompts: 3}\n", "utf-8")
    assert examples() == []


def test_curves_levels_previews_events_and_settings_are_those_of_the_run(tmp_path: Path) -> None:
    said = contents(LiveRun("run", made_up_run(tmp_path / "run")))
    images, minutes = (said["curves"][axis] for axis in ("images", "minutes"))
    assert images["held_out"] == [(32 * step, 2 / step) for step in range(100, 1001, 100)]
    assert images["trained"][0] == (3200, 1 / 100)
    assert minutes["speed"][-1] == (1000 / 2 / 60, 64.0)
    assert len(images["training"]) == 100
    assert set(said["levels"]["images"]) == {"100", "900"}
    assert said["previews"][0] == {"step": 0, "images": None}
    assert said["previews"][-1] == {"step": 1000, "images": 32000}
    assert said["events"][0]["message"].startswith("torch.compile is off")
    assert said["refused"] == [{"key": "broken.jpg", "reason": "truncated file"}]
    assert said["settings"]["training.batch_size"] == 32
    assert said["results"]["recall"]["trained"] == {"at_1": 0.9, "count": 60}
    json.dumps(said, allow_nan=False)  # browsers read no NaN


def test_damaged_figures_are_left_out(tmp_path: Path) -> None:
    odd = [line(1, loss=None), line(2, loss="x"), line(3, loss=float("nan")), line(4, loss=1e400)]
    live = planned(tmp_path / "run", *odd, line(5, loss=0.5), max_steps="many", max_seconds=None)
    said = contents(live)
    assert said["curves"]["images"]["training"] == [(20, 0.5)]
    json.dumps([said, summary(live)], allow_nan=False)


def test_a_long_log_is_thinned_and_smoothed_as_a_short_one(tmp_path: Path) -> None:
    many = [line(step, loss=1.0 + step % 2, images_per_second=8.0) for step in range(1, 30_001)]
    said = contents(planned(tmp_path / "run", *many))
    losses = said["curves"]["images"]["training"]
    assert len(losses) == 300
    assert losses[-1][0] == 4 * 30_000
    assert all(y == pytest.approx(1.5, abs=0.01) for _, y in losses)


@pytest.mark.skipif(os.name == "nt", reason="links need a permission there")
def test_nothing_that_a_link_leads_to_is_shown(tmp_path: Path) -> None:
    folder, secret = made_up_run(tmp_path / "run"), tmp_path / "secret.png"
    noise(secret)
    shots = folder / "previews"
    for path in shots.iterdir():
        path.unlink()
    (shots / "step-000001.png").symlink_to(secret)
    os.mkfifo(shots / "step-000002.png")
    noise(shots / "step-000003.png")
    assert [shot["step"] for shot in contents(LiveRun("run", folder))["previews"]] == [3]
    shots.rename(tmp_path / "elsewhere")
    shots.symlink_to(tmp_path / "elsewhere")
    assert contents(LiveRun("run", folder))["previews"] == []


def test_private_paths_stay_out_of_the_page(tmp_path: Path) -> None:
    folder, secret = made_up_run(tmp_path / "run"), "/home/me/secret/photos"
    (folder / "config.yaml").write_text(f"data: {{dataset_path: {secret}}}\n", "utf-8")
    told = {"kind": "event", "step": 1, "message": f"in {secret}/a"}
    append(folder / "log.jsonl", {}, told)
    assert "/home/me" not in json.dumps(contents(LiveRun("run", folder)))


# Its speed


def test_the_speed_of_a_run_is_the_same_on_the_page_and_in_the_report(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run")
    log = run / "log.jsonl"
    log.write_text(log.read_text("utf-8").rpartition("\n")[0] + "\n", "utf-8")

    def shown() -> tuple[float | None, str]:
        read = read_run(run)
        (card,) = [value for name, value, _ in figures(read) if name == "images per second"]
        return summary(LiveRun("run", run))["images_per_second"], card

    assert shown() == (63.14, "63.1")  # of results.json; the last line of the log says 64
    append(log, {"kind": "speed", "step": 1000, "images_per_second": 61.23})
    assert shown() == (61.23, "61.2")
    append(log, line(1010, images_per_second=58.5))  # it goes on
    assert shown() == (58.5, "58.5")
