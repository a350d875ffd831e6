"""A data set on the Hub is read from where it is, in the order of any other streamed one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_hub import dataset_hub, files_of
from emoji_formats import emoji, metadata_jsonl

from limner.config import load_config
from limner.data.convert.convert import prepare
from limner.data.formats.hub_streaming import _chosen

PROGRAM = """
import json, sys
from limner.config import load_config
from limner.data.open import open_data, training_order
config = load_config(None, [
    "data.dataset_name=someone/emoji", "data.streaming=true", "data.train_split=1",
    f"cache.folder={sys.argv[1]}", "data.shuffle_window=8",
])
data = open_data(config)
order = training_order(data, config)
rows = data.trained.rows
print(json.dumps({
    "rows": [[row.captions, data.set.load(row, 16).tolist()] for row in data.set.rows],
    "order": [rows[order.position(count)].key for count in range(2 * len(rows))],
}))
"""


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_a_set_on_the_hub_is_streamed_whole_and_in_order(layout: str, tmp_path: Path) -> None:
    metadata_jsonl(tmp_path / "source")
    prepare(
        "auto", tmp_path / "source", tmp_path / "set", to=layout, shard_size="10",
        overrides=["data.caption_column=[english, chinese]"],
    )  # fmt: skip
    files = files_of(tmp_path / "set")
    asked: list[int] = []
    said = []
    with dataset_hub("someone/emoji", files, asked) as address:
        there = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")],
                env=there, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            said.append(json.loads(done.stdout.splitlines()[-1]))
    first, again = said
    assert first == again
    assert sorted(map(json.dumps, first["rows"])) == sorted(
        json.dumps([list(one.captions), one.pixels.tolist()]) for one in emoji()
    )
    one_pass = len(first["rows"])
    assert sorted(first["order"][:one_pass]) == sorted(first["order"][one_pass:])
    assert len(set(first["order"][:one_pass])) == one_pass
    assert asked, "pictures came from the Hub"
    held = [path for path in (tmp_path / "home").rglob("*") if path.suffix in (".parquet", ".tar")]
    assert held == []  # nothing was downloaded as a whole


def test_files_are_chosen_by_split_and_configuration_as_the_hub_names_them() -> None:
    def chosen(files: list[str], *settings: str) -> list[str]:
        config = load_config(None, ["data.dataset_name=a/b", *settings])
        return _chosen([f"datasets/a/b/{file}" for file in files], config)

    shards = ["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"]
    assert chosen(shards) == ["datasets/a/b/data/train-00000-of-00002.parquet"]
    assert chosen(shards, "data.dataset_split=test") == [
        "datasets/a/b/data/test-00000-of-00001.parquet"
    ]
    assert chosen(shards, "data.dataset_split=validation") == []
    assert len(chosen(["pictures-0.tar", "pictures-1.tar"])) == 2  # no split is named: all train
    converted = [
        "default/train/0000.parquet",
        "small/train/0000.parquet",
        "small/test/0000.parquet",
    ]
    assert chosen(converted, "data.dataset_config=small") == [
        "datasets/a/b/small/train/0000.parquet"
    ]
