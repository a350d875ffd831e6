"""What is shown and what is shared: no passwords, no signatures, and no folders of this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_trackers import Calls
from runs import messages

from limner.apps.check_data.check import check
from limner.apps.doctor import examine
from limner.cli import main
from limner.config import Config, load_config
from limner.data.dataset import Refused
from limner.data.streaming.remote_files import Place, patiently
from limner.data.streaming.sharded_dataset import short_names
from limner.errors import LimnerError
from limner.evaluation.evaluate import evaluate
from limner.redaction import (
    places_of,
    redact,
    redact_urls,
    redacted,
    redacted_settings,
    shown_place,
)
from limner.reports.evaluation_report import write_page
from limner.reports.run_report import write_report
from limner.training.trainer import Trainer

SIGNED = "https://user:secret@files.example/x.tar?X-Amz-Signature=5f3a&X-Amz-Date=1#part"
CLIENT = "Northwind GmbH"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{SIGNED} could not be reached", "https://files.example/x.tar could not be reached"),
        (f"see ({SIGNED}).", "see (https://files.example/x.tar)."),
        ("http://u:p@127.0.0.1:80/{0..3}.tar", "http://127.0.0.1:80/{0..3}.tar"),
        ("http://user:pa/ss@host/x.tar", "http://host/x.tar"),
        ("http://user:pa#ss@host/x.tar", "http://host/x.tar"),
        ("simplecache::https://u:p@h/x?y", "simplecache::https://h/x"),
        (r"http:\/\/user:secret@h\/x?y=1", r"http:\/\/h\/x"),
        ("http%3A%2F%2Fu%3Ap%40h%2Fx%3Fs%3D1", "http://h/x"),
        ("URL('https://h/x?sig=abc')", "URL('https://h/x')"),
        ("403, X-Amz-Signature=5f3a&sig=7", "403, X-Amz-Signature=***&sig=***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("with hf_abcdefghijklmnopqrst", "with ***"),
        ("https://[::1]:80/x", "https://[::1]:80/x"),
        ("https://h/@scope/p s3://bucket/key", "https://h/@scope/p s3://bucket/key"),
        ("hf://datasets/a/b@main/x.tar", "hf://datasets/a/b@main/x.tar"),
        ("me@example.org at 1/2", "me@example.org at 1/2"),
        # As pathlib writes it, here and on Windows.
        ("https:/u:p@h/x?sig=1; give a folder", "https:/h/x; give a folder"),
        (r"https:\u:p@h\x?sig=1 is no folder", r"https:\h\x is no folder"),
    ],
)
def test_urls_lose_user_password_query_and_fragment(text: str, shown: str) -> None:
    assert redact_urls(text) == shown
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"from /home/maria/{CLIENT}/photos (pairs)", "from photos (pairs)"),
        ("initialised from /runs/a/demo: 3 of 4 tensors", "initialised from demo: 3 of 4 tensors"),
        (r"C:\Users\maria\Northwind\p.png is no picture", "p.png is no picture"),
        (r"\\server\Northwind\p.png, and so on", "p.png, and so on"),
        ("limner evaluate ~/Northwind/run --reference=/data/n/r.npz",
         "limner evaluate run --reference=r.npz"),
        ("file:///home/maria/x.tar", "x.tar"),
        (f"from clients/{CLIENT}/photos (pairs)", "from photos (pairs)"),
        ("1/255 and/or 63 images/s, 4 / 5, I/O", "1/255 and/or 63 images/s, 4 / 5, I/O"),
        ("a file in /mnt/nas/Müller, Schmidt/photos/a.png is gone", "a file in a.png is gone"),
        ("in /home/anna/O'Neil (divorce)/a.png, or not", "in a.png, or not"),
        ("in //nas01/clients/Acme/a.png", "in a.png"),
        ("/home/a/b.png, 63 images/s (1/3)", "b.png, 63 images/s (1/3)"),
        ("'/home/a/b', '/home/a/c'", "'b', 'c'"),
    ],
)  # fmt: skip
def test_what_is_shared_names_no_folder(text: str, shown: str) -> None:
    assert redact(text, [f"clients/{CLIENT}/photos"]) == shown


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_what_is_shared_names_no_folder_behind_a_link(tmp_path: Path) -> None:
    client = tmp_path / "Acme; Inc (layoffs)"
    client.mkdir()
    (tmp_path / "work").symlink_to(client)
    place = str(tmp_path / "work" / "runs" / "one")
    said = f"{client / 'runs' / 'one' / 'checkpoint-3'} could not be written"
    assert redact(said, [place]) == "one/checkpoint-3 could not be written"


def test_paths_are_whole_where_only_urls_are_cut() -> None:
    assert redact_urls("/home/maria/x.png is no picture") == "/home/maria/x.png is no picture"


def test_a_place_is_its_last_name_and_a_hub_id_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_place("someone/emoji") == "someone/emoji"
    Path("someone").mkdir()
    assert shown_place("someone/emoji") == "emoji", "a folder of that name is here"
    assert shown_place("owner/run", on_the_hub=False) == "run"
    assert shown_place("./") == "."
    assert shown_place(SIGNED) == "https://files.example/x.tar"
    assert shown_place(str(Path(SIGNED))) == str(Path("https://files.example/x.tar"))


def test_a_configuration_is_shared_without_its_places() -> None:
    settings = {
        "data": {"dataset_path": SIGNED, "allowed_paths": ["/a/b", "c/d"], "image_size": 64},
        "training": {"output_dir": f"clients/{CLIENT}/run", "init_from": "me/apples"},
        "cache": {"folder": "/scratch/maria/cache"},
        "evaluation": {"reference": "~/Northwind/r.npz", "num_images": 4},
        "general": 1,
    }
    assert redacted_settings(settings) == {
        "data": {
            "dataset_path": "https://files.example/x.tar",
            "allowed_paths": ["b", "d"],
            "image_size": 64,
        },
        "training": {"output_dir": "run", "init_from": "me/apples"},
        "cache": {"folder": "cache"},
        "evaluation": {"reference": "r.npz", "num_images": 4},
        "general": 1,
    }
    assert f"clients/{CLIENT}/run" in places_of(settings)
    tree = {"a": [{"prompt": "an arrow /up/down", "b": "/x/y"}], "n": 1}
    assert redacted(tree, but=("prompt",)) == {
        "a": [{"prompt": "an arrow /up/down", "b": "y"}],
        "n": 1,
    }


def test_every_key_that_takes_a_place_is_known() -> None:
    words = ("path", "folder", "dir", "pretrained_model_name", "init_from", "resume")
    words += ("reference", "inception", "dinov2", "clip")
    from limner.redaction import PLACES

    keys = {
        (section, key)
        for section, values in load_config(None).model_dump().items()
        for key in values
        if any(key == word or key.endswith((f"_{word}", f"_{word}s")) for word in words)
    }
    assert keys == {(section, key) for section, names in PLACES.items() for key in names}


# Where it is shown


def test_no_error_and_no_line_of_a_log_holds_a_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert "https://files.example/x.tar is gone" in str(LimnerError(f"{SIGNED} is gone"))
    monkeypatch.setattr("limner.data.streaming.remote_files.WAITS", (0,))

    def ask() -> None:
        raise OSError(f"cannot connect to {SIGNED}")

    with pytest.raises(LimnerError) as error:
        patiently(SIGNED, ask)
    for text in (str(error.value), caplog.text):
        assert "files.example/x.tar" in text
        assert "secret" not in text
        assert "5f3a" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["generate", SIGNED, "a cat"],
        ["report", SIGNED],
        ["train", "--config", SIGNED],
        ["train", "--resume", SIGNED],
        ["train", f"training.init_from={SIGNED}"],
    ],
)
def test_a_url_where_a_path_is_expected_is_cut(words: list[str], capsys) -> None:
    assert main(words) == 2
    said = "".join(capsys.readouterr())
    assert "files.example" in said
    assert "secret" not in said
    assert "5f3a" not in said


def test_lines_of_libraries_and_tracebacks_hold_no_secret() -> None:
    program = f"""
import logging, warnings
from limner import console
console.set_up()
console.set_up_logging("info")
logging.getLogger("fsspec").warning("retrying %s", "{SIGNED}")
warnings.warn("{SIGNED} is slow")
console.say_error("{SIGNED} is gone")
raise RuntimeError("{SIGNED}")
"""
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 1
    assert "RuntimeError: https://files.example/x.tar\n" in done.stderr
    assert done.stderr.count("https://files.example/x.tar") == 4
    assert "secret" not in done.stderr
    assert "5f3a" not in done.stderr


def test_shards_are_named_without_what_urls_hide() -> None:
    places = [Place(f"http://u:secret{i}@h/x.tar?sig={i}", 1, "") for i in range(2)]
    assert short_names(places) == ["0-x.tar", "1-x.tar"]
    places = [Place(f"http://u:secret@h{i}/x.tar?sig={i}", 1, "") for i in range(2)]
    assert short_names(places) == ["h0/x.tar", "h1/x.tar"]


def test_the_doctor_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@127.0.0.1:9")
    config = load_config({"vae": {"pretrained_model_name": "someone/vae"}})
    monkeypatch.setattr("limner.apps.doctor.CHECKS", (pretrained_check(),))
    (found,) = examine(config)
    assert "http://127.0.0.1:9 does not answer" in found.seen
    assert "secret" not in str(found)


def pretrained_check() -> Callable[[Config], Any]:
    from limner.apps import doctor

    return lambda config: [doctor.hub("someone/vae will be downloaded")]


# Where it is shared


def texts_of(folder: Path) -> dict[str, str]:
    kinds = (".json", ".jsonl", ".html")
    return {p.name: p.read_text("utf-8") for p in folder.rglob("*") if p.suffix in kinds}


@pytest.fixture
def clients_run(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of a run on somebody's pictures, all of it below a folder of a client's name, and
    with paths that are relative."""
    from limner.evaluation.end_of_run import evaluate_run

    place = tmp_path / CLIENT
    data = place / "pictures"
    config = tiny_config("training.max_steps=1", "data.num_samples=6")
    picture_set_into(data, config)
    monkeypatch.chdir(tmp_path)
    run = Path(CLIENT) / "run"
    own = tiny_config(
        "training.max_steps=1", "data.dataset_name=null", f"data.dataset_path='{CLIENT}/pictures'",
        f"training.output_dir='{run}'", "data.num_samples=6", "training.trackers=tensorboard",
        f"cache.folder='{CLIENT}/cache'",
    )  # fmt: skip
    trainer = Trainer(own)
    trainer.train()
    evaluate_run(run, trainer.config, trainer.data, most=2)
    evaluate(run, ["evaluation.num_images=4", "evaluation.efficientnet=false"], device="cpu",
             command=f"limner evaluate '{tmp_path}/{CLIENT}/run'")  # fmt: skip
    write_page(run / "evaluation")
    return tmp_path / run


def picture_set_into(folder: Path, config: Config) -> None:
    from PIL import Image

    from limner.data.open import open_image_dataset

    folder.mkdir(parents=True)
    drawn = open_image_dataset(config)
    for number, row in enumerate(list(drawn.rows)[:12]):
        Image.fromarray(drawn.load(row, 16)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(row.captions[0], "utf-8")
    (folder / "bad.png").write_bytes(b"")
    (folder / "bad.txt").write_text("a bad one", "utf-8")


def test_nothing_of_a_run_that_is_shared_names_a_folder(clients_run: Path) -> None:
    checked = clients_run.parent / "check"
    check(load_config(clients_run / "config.yaml"), checked)
    from limner.reports.data_report import write_check_page

    write_check_page(checked)
    write_report(clients_run)
    found = texts_of(clients_run)
    found |= {n: text for n, text in texts_of(checked).items() if n != "problems.jsonl"}
    wanted = {"log.jsonl", "results.json", "report.html", "evaluation.json", "evaluation.html"}
    assert wanted | {"check.json", "check.html"} <= found.keys()
    for name, text in found.items():
        if name not in ("refused.jsonl", "check.json"):  # by which rows are mended
            assert CLIENT not in text, name
    assert "from pictures (" in json.loads(found["results.json"])["dataset"]["description"]
    assert "pictures" in found["report.html"]
    events = (clients_run / "tensorboard").rglob("events*")
    assert not [path for path in events if CLIENT.encode() in path.read_bytes()]
    assert CLIENT in (clients_run / "config.yaml").read_text("utf-8"), "the run's own goes on by it"


def test_the_log_of_a_streamed_run_is_clean(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from limner.training.monitor.run_log import RunLog, read_log

    log = RunLog(tmp_path, SimpleNamespace(is_main_process=True), 0, ["a b/c d"])  # type: ignore[arg-type]
    log.write("event", 1, message=f"{SIGNED} was read, and a b/c d")
    log.refuse([Refused("x.tar/1", f"{SIGNED}: cut off")])
    assert read_log(log.path)[0]["message"] == "https://files.example/x.tar was read, and c d"
    assert "secret" not in log.refused_path.read_text("utf-8")
    assert messages(tmp_path) == ["https://files.example/x.tar was read, and c d"]


def test_trackers_are_told_no_place_and_not_what_was_typed(
    tiny_config: Callable[..., Config], fake: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: list[list[str]] = []
    calls = fake("wandb", init=lambda **_: typed.append(list(sys.argv)))
    word = f"data.dataset_path={SIGNED}"
    monkeypatch.setattr(sys, "argv", ["limner", "train", word, "--config", "/n/Northwind/c.yaml"])
    from limner.training.monitor.trackers import Trackers

    config = tiny_config("training.trackers=wandb", f"data.dataset_path={SIGNED}")
    trackers = Trackers(config, 0)
    trackers.folder.mkdir(parents=True)
    trackers.start()
    shown = ["limner", "train", "data.dataset_path=https://files.example/x.tar"]
    assert typed == [[*shown, "--config", "c.yaml"]]
    assert sys.argv[2] == word
    assert "secret" not in str(calls)
    assert str(trackers.folder) not in str([c for c in calls if "config" in c[0]])


def test_a_model_in_a_folder_is_no_hub_id_when_it_is_gone(
    tiny_config: Callable[..., Config], trained: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(trained / "outputs", tmp_path / "Northwind" / "base")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    words = ["training.init_from=Northwind/base", "training.max_steps=1"]
    Trainer(tiny_config(*words)).train()
    shutil.rmtree(tmp_path / "Northwind")
    write_report(run)
    assert "Northwind" not in (run / "report.html").read_text("utf-8")
    # The same command goes on, and still knows.
    config = Trainer(tiny_config(*words)).config
    assert config.training.init_from == "./Northwind/base"
    assert "Northwind" not in str(redacted_settings(config.model_dump()))
    settings = {"training": {"output_dir": "Northwind/run", "init_from": "me/apples"}}
    assert redact("in Northwind/run, from me/apples", places_of(settings)) == (
        "in run, from me/apples"
    )
