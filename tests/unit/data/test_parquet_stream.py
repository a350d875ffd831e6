"""Parquet with the pictures in it: a row group is a piece, and exact resume holds."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tar_files import keys_seen, png

from limner.config import Config
from limner.data.open import open_data


def test_parquet_with_pictures_resumes_in_the_middle(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    for shard in range(2):
        numbers = range(30 * shard, 30 * shard + 30)
        table = pa.table(
            {
                "image": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers],
                "text": [f"colour {n}" if n != 7 else None for n in numbers],
            }
        )
        pq.write_table(table, tmp_path / f"train-{shard:05d}-of-00002.parquet", row_group_size=8)
    config = tiny_config(
        "data.dataset_name=null",
        "data.num_samples=null",
        f"data.dataset_path='{tmp_path / '*.parquet'}'",
        f"cache.folder='{tmp_path / 'cache'}'",
        "data.memory_mb=0",
        "data.shuffle_window=16",
        "data.train_split=1",
    )
    data = open_data(config)
    assert [row.key for row in data.set.refused] == ["train-00000-of-00002.parquet/7"]
    there = sorted(set(range(60)) - {7})
    whole = keys_seen(config, data, 0, 24, 0)
    assert sorted(whole[:59]) == there
    assert sorted(whole[59:118]) == there
    assert keys_seen(config, open_data(config), 20, 7, workers=2) == whole[20:55]
