"""`limner check-data`: every row looked at, and what is wrong with it said, before it is trained.

Nothing of the data is changed. What is kept of each row while it runs are a few hundred bytes.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from limner.apps.check_data.captions import faults_of, script_of
from limner.apps.check_data.duplicates import find_duplicates
from limner.apps.check_data.findings import Finding, Problems, is_list_of_findings, of_refused
from limner.apps.check_data.images import Fault, Looked, look, share_cut
from limner.apps.check_data.samples import FOLDER, OURS, show_duplicates, show_samples
from limner.apps.check_data.similarity import Compared
from limner.config import Config
from limner.console import progress_lines
from limner.data.buckets import Buckets
from limner.data.dataset import ImageDataset, Row, shown_set
from limner.data.formats.folders import FolderImages
from limner.data.images import EXTENSIONS
from limner.data.open import in_buckets, open_image_dataset
from limner.data.own_folder import keep_out_of_links, keep_out_of_the_data
from limner.data.split import sampling_rank, split_rows
from limner.errors import LimnerError
from limner.files.atomic import replacing, write_text_whole
from limner.files.folder_lock import FolderLock
from limner.files.output_folders import foreign_names, kind_of_output
from limner.files.system_names import is_system_name
from limner.messages import shorten
from limner.text.caption_lengths import CaptionLengths, CutsCaptions

log = logging.getLogger(__name__)

AT_ONCE = 256
LOCK = ".limner-check.lock"
WRITTEN = ("problems.jsonl", "check.json", "check.html", FOLDER)
DRAWN = ("emoji", "shapes")
"""Built-in sets, which draw at any size."""
SHARED_BY, SHARED_SHARE = 5, 0.05
"""A caption is told of that so many pictures, and this share of all, have as their first."""
SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATIOS = (1 / 3, 1 / 2, 2 / 3, 4 / 5, 5 / 4, 3 / 2, 2.0, 3.0)


def check(config: Config, output: Path, sample: int | None = None) -> dict[str, Any]:
    """Look at the data set of a configuration; returns what `check.json` in `output` holds.

    Writes check.json, problems.jsonl (a line for each finding), and the pictures that the page
    shows. Raises LimnerError where there is no data set or no usable row in it.

    Args:
        sample: look at so many rows only, a stable choice by hash.
    """
    keep_out_of_the_data(output, config, "--output")
    _refuse_foreign(output)
    with FolderLock(output, "choose another --output", LOCK):
        return _check(config, output, sample)


def _check(config: Config, output: Path, sample: int | None) -> dict[str, Any]:
    dataset = open_image_dataset(config)
    keep_out_of_links(output, dataset, "--output")
    drawn = dataset.name in DRAWN
    with Problems(output / "problems.jsonl") as problems:
        for refused in dataset.refused:
            problems.add(of_refused(refused))
        trained, held_out = _split(dataset, config, problems)
        of_all = len(trained) + len(held_out)
        which = _some(dataset.rows, np.sort(np.concatenate([trained, held_out])).tolist(), sample)
        out = np.isin(which, held_out)
        sizes = _Sizes(config, _buckets(dataset, trained, config))
        reader, tokens_by = _reader(config, dataset.rows, trained)
        with Compared(len(which)) as compared:
            images = _ImageStatistics(drawn)
            captions = _Captions(reader)
            for index, row, found in _looked_at(dataset, which, sizes, drawn):
                _tell(dataset, row, problems, captions.add(row))
                if isinstance(found, Fault):
                    _tell(dataset, row, problems, [found])
                    continue
                _tell(dataset, row, problems, found.faults)
                images.add(found, sizes.of(which[index]))
                if not found.blank:
                    compared.put(index, found.pixels, found.small)
            _tell_shared(dataset, which, captions, problems)
            for finding in find_duplicates(dataset, which, out, compared):
                problems.add(finding)
            good = [which[i] for i in np.flatnonzero(compared.there)]
        for finding in (*_unreferenced(dataset, config), *_of_reading(dataset)):
            problems.add(finding)
        findings = problems.told()
    told: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": shown_set(dataset),
        "rows": {
            "usable": len(dataset.rows),
            "used": of_all,
            "looked_at": len(which),
            "trained": int((~out).sum()),
            "held_out": int(out.sum()),
            "decoded": images.count,
            "refused": len(dataset.refused),
        },
        "findings": findings,
        "pictures": images.told(),
        "captions": {**captions.told(), "tokens_by": tokens_by},
        "settings": {
            "data.image_size": config.data.image_size,
            "data.buckets": sizes.told(),
            "data.train_split": config.data.train_split,
            "data.num_samples": config.data.num_samples,
            "text_encoder.max_length": reader.max_length if reader else None,
        },
    }
    images_of_page = output / FOLDER
    with replacing(images_of_page, True, durable=False, check=_refuse_images) as shown:
        seed = config.training.seed
        told["samples"] = show_samples(dataset, good, sizes.of, seed, shown)
        told["alike"] = show_duplicates(dataset, which, findings, shown)
    write_text_whole(output / "check.json", json.dumps(told, indent=1))
    return told


def _split(
    dataset: ImageDataset, config: Config, problems: Problems
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of rows, int64: trained, held out."""
    rows = dataset.rows
    try:
        return split_rows(rows, config.data.train_split, config.data.num_samples)
    except LimnerError as error:
        problems.add(Finding("nothing-to-train", dataset.name, str(error)))
        return np.arange(len(rows)), np.arange(0)


def _buckets(dataset: ImageDataset, trained: np.ndarray, config: Config) -> Buckets | None:
    """The size that each row is trained at, where `data.buckets` asks for several."""
    unit = 1
    if config.data.buckets == "auto":
        from limner.pretrained.components import open_parts

        unit = open_parts(config).unit
    return in_buckets(dataset, trained, config, unit)[0]


class _Sizes:
    """(height, width) that each row is trained at."""

    def __init__(self, config: Config, buckets: Buckets | None) -> None:
        self.side, self.buckets = config.data.image_size, buckets

    def of(self, position: int) -> tuple[int, int]:
        return self.buckets.size(position) if self.buckets else (self.side, self.side)

    def told(self) -> str | None:
        """None where all are squares."""
        if self.buckets is None:
            return None
        return ", ".join(f"{width} x {height}" for height, width in self.buckets.sizes)


def _some(rows: Sequence[Row], used: list[int], sample: int | None) -> list[int]:
    if sample is None or sample >= len(used):
        return used
    return sorted(heapq.nsmallest(sample, used, key=lambda i: sampling_rank(rows[i].key)))


def _reader(
    config: Config, rows: Sequence[Row], trained: np.ndarray
) -> tuple[CutsCaptions | None, str]:
    """What counts a caption's tokens as training will, and its name."""
    text = config.text_encoder
    if text.pretrained_model_name is not None:
        from limner.pretrained.text_encoder import PretrainedTextEncoder

        try:
            return PretrainedTextEncoder(text), text.pretrained_model_name
        except LimnerError as error:  # the rest is worth looking at without it
            return None, f"not counted: {str(error).splitlines()[0]}"
    from limner.text.tokenizer import CaptionTokenizer

    assert text.max_length
    captions = (caption for i in trained for caption in rows[i].captions)
    reader = CaptionTokenizer.learn(captions, text.vocab_size, text.max_length)
    return reader, "the built-in tokenizer, learned from the trained captions"


def _looked_at(
    dataset: ImageDataset, which: list[int], sizes: _Sizes, drawn: bool
) -> Iterator[tuple[int, Row, Looked | Fault]]:
    """Every picture decoded once, by threads, in the order of `which`."""
    progress = progress_lines(log, "rows looked at")
    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1)) as threads:
        for first in range(0, len(which), AT_ONCE):
            some = which[first : first + AT_ONCE]
            rows, to = [dataset.rows[i] for i in some], [sizes.of(i) for i in some]
            found = threads.map(lambda row, size: look(dataset, row, size, drawn), rows, to)
            for offset, (row, looked) in enumerate(zip(rows, found, strict=True)):
                yield first + offset, row, looked
            progress(first + len(rows), len(which))


def _tell(dataset: ImageDataset, row: Row, problems: Problems, faults: Sequence[Fault]) -> None:
    path = dataset.path(row) if faults else None
    for fault in faults:
        problems.add(Finding(fault.kind, row.key, fault.said, str(path) if path else None))


class _ImageStatistics:
    """Sizes, shapes, formats: counted."""

    def __init__(self, drawn: bool) -> None:
        self.drawn = drawn
        self.count, self.cut = 0, 0.0
        self.formats: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.sides = np.zeros(len(SIDES) + 1, dtype=np.int64)
        self.ratios = np.zeros(len(RATIOS) + 1, dtype=np.int64)

    def add(self, found: Looked, size: tuple[int, int]) -> None:
        self.count += 1
        self.formats[found.format] += 1
        self.modes[found.mode] += 1
        self.sides[np.searchsorted(SIDES, min(found.width, found.height), side="right")] += 1
        self.ratios[np.searchsorted(RATIOS, found.width / found.height, side="right")] += 1
        self.cut += share_cut(found.width, found.height, *size)

    def told(self) -> dict[str, Any]:
        if self.drawn or not self.count:
            return {"count": self.count}
        return {
            "count": self.count,
            "formats": dict(self.formats.most_common()),
            "modes": dict(self.modes.most_common()),
            "shorter_side": {"edges": list(SIDES), "counts": self.sides.tolist()},
            "width_by_height": {"edges": list(RATIOS), "counts": self.ratios.tolist()},
            "mean_share_cut": self.cut / self.count,
        }


class _Captions:
    """Lengths and scripts, counted; hashes of the first captions, to know those that many share."""

    def __init__(self, reader: CutsCaptions | None) -> None:
        self.reader = reader
        self.count = self.several = self.cut = 0
        self.characters: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.scripts: Counter[str] = Counter()
        self.first: list[int] = []

    def add(self, row: Row) -> list[Fault]:
        """What is wrong with a row's captions: of each kind once."""
        faults: dict[str, Fault] = {}
        self.several += len(row.captions) > 1
        self.first.append(hash(row.captions[0].casefold()))
        for caption in row.captions:
            self.count += 1
            self.characters[len(caption)] += 1
            self.scripts[script_of(caption)] += 1
            for fault in faults_of(caption):
                faults.setdefault(fault.kind, fault)
            if self.reader is None:
                continue
            length = self.reader.length(caption)
            self.tokens[length] += 1
            if length > self.reader.max_length:
                self.cut += 1
                said = f"{length} tokens, {self.reader.max_length} are read of {shorten(caption)}"
                faults.setdefault("caption-cut", Fault("caption-cut", said))
        return list(faults.values())

    def cut_in_words(self) -> str | None:
        """None: nothing is cut, or what would read the captions is not here."""
        if self.reader is None:
            return None
        return CaptionLengths(self.tokens, self.reader.max_length, self.reader.longest).in_words()

    def shared(self) -> list[tuple[int, int]]:
        """(index of the first row, how many rows) of each caption that too many share."""
        _, first, counts = np.unique(
            np.array(self.first, dtype=np.int64), return_index=True, return_counts=True
        )
        least = max(SHARED_BY, SHARED_SHARE * len(self.first))
        found = zip(first.tolist(), counts.tolist(), strict=True)
        return sorted((i, count) for i, count in found if count >= least)

    def told(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "rows_with_several": self.several,
            "characters": _quantiles(self.characters),
            "tokens": _quantiles(self.tokens),
            "cut": self.cut,
            "cut_in_words": self.cut_in_words(),
            "scripts": dict(self.scripts.most_common()),
        }


def _tell_shared(
    dataset: ImageDataset, which: list[int], captions: _Captions, problems: Problems
) -> None:
    for index, count in captions.shared():
        row = dataset.rows[which[index]]
        shared = shorten(row.captions[0])
        said = f"{count:,} of {len(which):,} pictures are {shared}; the first is this"
        _tell(dataset, row, problems, [Fault("caption-shared", said)])


def _quantiles(lengths: Counter[int]) -> dict[str, int]:
    """Least, median, 95th percentile, most; {} of nothing."""
    if not lengths:
        return {}
    values = sorted(lengths)
    sums = np.cumsum([lengths[value] for value in values])

    def at(share: float) -> int:
        return values[int(np.searchsorted(sums, share * sums[-1]))]

    return {"least": values[0], "median": at(0.5), "p95": at(0.95), "most": values[-1]}


def _unreferenced(dataset: ImageDataset, config: Config) -> Iterator[Finding]:
    """Picture files beside those of the rows that neither a row nor a refused row names.

    Only folders in which a row's picture lies are looked at: others may be of another use, such
    as COCO's val2017/. Where the path is a file that lists pictures, others may list the rest.
    """
    if not isinstance(dataset, FolderImages):
        return
    if Path(config.data.dataset_path).expanduser().is_file():
        return
    named = {row.key for row in dataset.rows} | {row.key for row in dataset.refused}
    for within in sorted({posixpath.dirname(row.key) for row in dataset.rows}):
        folder = dataset.folder / within
        for name in sorted(os.listdir(folder) if folder.is_dir() else ()):
            key = posixpath.join(within, name)
            is_image = Path(name).suffix.lower() in EXTENSIONS and not is_system_name(name)
            if is_image and not {key, ascii(key)} & named:  # a name that is no UTF-8 is refused so
                yield Finding(
                    "unreferenced-file", key, "no row names this file", str(folder / name)
                )


def _of_reading(dataset: ImageDataset) -> Iterator[Finding]:
    """What was not read, and how what was not clear was read."""
    if isinstance(dataset, FolderImages):
        for why, path in dataset.passed_over:
            place = str(dataset.folder / path)
            yield Finding("passed-over", path, f"skipped: {why}", place)
    for note in getattr(dataset, "notes", ()):
        yield Finding("reading", dataset.name, note)


def _refuse_foreign(output: Path) -> None:
    """Raises LimnerError where files of somebody else's would be replaced. Others may lie there."""
    ours = kind_of_output(output) == "a data check" or (output / LOCK).exists()  # or one killed
    for name in WRITTEN:
        path = output / name
        if not path.exists() or (ours if name != WRITTEN[0] else is_list_of_findings(path)):
            continue
        raise LimnerError(
            f"--output {output} is not an earlier check and contains {name}, which would be "
            "overwritten; use an empty or new folder"
        )
    _refuse_images(output / FOLDER)


def _refuse_images(folder: Path) -> None:
    """The list of findings is copied to where rows are mended, beside pictures of people's own."""
    if others := foreign_names(folder, like=OURS):
        raise LimnerError(
            f"{folder} contains {others[0]}, which no check wrote and which would be deleted; "
            "choose another --output"
        )
