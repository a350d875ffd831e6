"""Whatever stands in a configuration or in metadata: a valid object or a clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limner.checkpoint.manifest import damage
from limner.checkpoint.state import TrainingState
from limner.config import Config, known_keys, load_config
from limner.data.dataset import Refused, Row
from limner.data.formats.folders import (
    MOST_CHARACTERS,
    FolderImages,
    collect,
    read_folder,
)
from limner.errors import LimnerError

FEW = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PLAIN: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([*"0123", "auto", "no", "yes", "on", "emoji", "adamw", "Muon", "nan", "1e400"]),
    st.lists(st.floats(), max_size=3),
)
ANY: st.SearchStrategy[Any] = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(known_keys())
NAMES = KEYS | st.text(max_size=12).map(lambda name: f"training.{name}") | st.text(max_size=12)


def loaded(source: Any, overrides: tuple[str, ...] = ()) -> None:
    """Either a configuration that survives being written and read, or an error with words."""
    try:
        config = load_config(source, overrides)
    except LimnerError as error:
        words = str(error)
        assert len(words) > 20
        return
    assert isinstance(config, Config)
    assert load_config(yaml.safe_load(config.to_yaml())) == config


@FEW
@given(st.dictionaries(KEYS, PLAIN, min_size=1, max_size=4))
def test_any_values_of_known_keys(values: dict[str, Any]) -> None:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    loaded(sections)


@FEW
@given(ANY)
def test_any_structure_in_place_of_a_configuration(values: Any) -> None:
    loaded(values if isinstance(values, dict) else {"training": values})


@FEW
@given(NAMES, st.text(max_size=20) | PLAIN.map(str))
def test_any_override(name: str, value: str) -> None:
    loaded(None, (f"{name}={value}",))


@FEW
@given(st.binary(max_size=200) | ANY.map(lambda v: json.dumps(v, default=str).encode()))
def test_any_bytes_as_a_configuration_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    loaded(path)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {victim}']",
        "training: !!python/object/apply:os.system ['touch {victim}']",
        "training: {{output_dir: !!python/object/new:os.system ['touch {victim}']}}",
    ],
)
def test_a_configuration_runs_nothing(text: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "config.yaml", tmp_path / "victim"
    path.write_text(text.format(victim=victim), encoding="utf-8")
    with pytest.raises(LimnerError, match=r"config\.yaml is not valid YAML"):
        load_config(path)
    load_config(None, [f"training.output_dir={text.format(victim=victim)}"])  # words, no more
    assert not victim.exists()


# Metadata

WORDS = st.text(max_size=20) | st.sampled_from(
    ["", " ", "../x.png", "/x.png", "a.png", "sub/b.png"]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "image": WORDS | ANY,
            "file_name": WORDS | ANY,
            "text": WORDS | ANY | st.lists(WORDS, max_size=3),
            "other": PLAIN,
        },
    )
    | ANY,
    max_size=6,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.png", "é.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    return tmp_path / "data"


def read(path: Path, folder: Path | None = None, opens: Callable[..., Any] = read_folder) -> None:
    """Rows that stay inside the folder and have words, reasons for the rest, or one clear error."""
    folder = folder or path
    try:
        found = opens(path)
    except LimnerError as error:
        words = str(error)
        assert str(folder) in words
        return
    rows, refused = found.rows, found.refused
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert isinstance(row, Row)
        assert (folder / row.key).resolve().is_relative_to(folder.resolve())
        assert (folder / row.key).is_file()
        assert row.captions
        for caption in row.captions:
            assert caption.strip() == caption != ""
            assert len(caption) <= MOST_CHARACTERS
            caption.encode("utf-8")
    for row in refused:
        assert isinstance(row, Refused)
        json.dumps([row.key, row.reason], ensure_ascii=False).encode("utf-8")
        assert row.reason


def dumped(rows: Any) -> str:
    return json.dumps(rows, default=str)


@FEW
@given(ROWS)
def test_any_rows_in_metadata_json(folder: Path, rows: list[Any]) -> None:
    (folder / "metadata.json").write_text(dumped(rows), encoding="utf-8")
    read(folder)


@FEW
@given(ROWS, st.booleans())
def test_any_rows_in_metadata_jsonl(folder: Path, rows: list[Any], cut: bool) -> None:
    text = "\n".join(map(dumped, rows))
    (folder / "metadata.jsonl").write_text(text[: len(text) // 2] if cut else text, "utf-8")
    read(folder)


@FEW
@given(
    st.sampled_from(["metadata.json", "metadata.jsonl", "metadata.csv", "a.txt"]),
    st.binary(max_size=300),
    st.sampled_from([b"", b'[{"image": "a.png", "text": "', b"file_name,text\na.png,"]),
)
def test_any_bytes_as_metadata(folder: Path, name: str, data: bytes, before: bytes) -> None:
    for other in folder.glob("metadata.*"):
        other.unlink()
    (folder / name).write_bytes(before + data)
    read(folder)


STARTS = {
    "t.csv": b"image,text,held_out\na.png,",
    "t.tsv": b"caption\tfile_name\n",
    "captions.txt": b"image|comment\n",
    "t.jsonl": b'{"image": "a.png", "text": "',
    "t.parquet": b"PAR1",
    "annotations/captions_x.json": b'{"images": [{"id": 1, "file_name": "a.png"}], "ann',
    "images.txt": b"1 ",
    "train_test_split.txt": b"1 ",
}


@FEW
@given(st.sampled_from([*STARTS]), st.booleans(), st.binary(max_size=200))
def test_any_bytes_in_any_format(folder: Path, name: str, begun: bool, data: bytes) -> None:
    for other in STARTS:
        (folder / other).unlink(missing_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / name).write_bytes(STARTS[name] * begun + data)
    if name == "train_test_split.txt":
        (folder / "images.txt").write_text("1 a.png\n", encoding="utf-8")
    for path in (folder, folder / name):
        read(path, folder, FolderImages)


@FEW
@given(st.lists(st.tuples(st.text(), WORDS | ANY, ANY), max_size=5))
def test_any_pairs(folder: Path, entries: list[tuple[str, Any, Any]]) -> None:
    from limner.data.formats.folders import Entry

    rows, refused = collect([Entry(*entry) for entry in entries], folder)
    assert len(rows) + len(refused) <= sum(
        max(1, len(text)) if isinstance(text, list) else 1 for _, _, text in entries
    )


# What a checkpoint says of itself


@FEW
@given(
    st.dictionaries(st.sampled_from(["step", "images", "seconds", "decay_start", "x"]), ANY) | ANY
)
def test_any_training_state(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "training_state.json"
    path.write_text(dumped(values), encoding="utf-8")
    try:
        state = TrainingState.read(path)
    except LimnerError as error:
        refused = str(error)
        assert "training_state.json" in refused
        return
    assert state.step >= 0 <= state.images


@FEW
@given(st.dictionaries(st.just("files"), st.dictionaries(WORDS, ANY)) | ANY)
def test_any_manifest(tmp_path: Path, values: Any) -> None:
    (tmp_path / "manifest.json").write_text(dumped(values), encoding="utf-8")
    problem = damage(tmp_path)
    assert problem is None or len(problem) > 10
