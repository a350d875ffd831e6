"""sweep.json: all measurements so far, so that none is repeated.

    {"format": 1,
     "protocols": {id: what must be equal for two measurements to be comparable},
     "measured": [{"protocol": id, "part": "chosen" | "reported", "sampling": ..., "cost": ...,
                   "count": ..., "distance": ..., ...}],
     "before": the sampling section before the first sweep,
     "stored": {"sampling": ..., "cost": ..., "date": ..., "about": ...} | null,
     "table": the last comparison}

It is rewritten atomically after each measurement.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limner.apps.sweep.measurement import Measurement
from limner.config import SamplingConfig
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.files.fingerprints import digest
from limner.files.small_files import read_json

FORMAT = 1
NUMBERS = ("distance", "match", "right")


class Record:
    """The measurements of the sweeps of one checkpoint.

    Args:
        path: the file, which need not exist.

    Raises:
        LimnerError: the file is damaged, or has another format version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {
            "format": FORMAT,
            "protocols": {},
            "measured": [],
            "before": None,
            "stored": None,
            "table": None,
        }
        self._known: dict[tuple[str, str, SamplingConfig, int], Measurement] = {}
        if path.exists():
            self._read()

    def find(
        self, protocol: dict[str, Any], part: str, sampling: SamplingConfig, count: int
    ) -> Measurement | None:
        """A measurement with the same protocol, or None."""
        return self._known.get((identity(protocol), part, sampling, count))

    def add(self, protocol: dict[str, Any], part: str, found: Measurement) -> None:
        """Add a measurement and write it to disk."""
        name = identity(protocol)
        self.values["protocols"][name] = protocol
        self._known[name, part, found.sampling, found.count] = found
        line = asdict(found) | {"sampling": found.sampling.model_dump(mode="json")}
        self.values["measured"].append({"protocol": name, "part": part, **line})
        self.write()

    def write(self) -> None:
        write_text_whole(self.path, json.dumps(self.values, ensure_ascii=False, indent=1))

    def setting(self, key: str) -> SamplingConfig | None:
        """The sampling section at "before" or "stored"."""
        found = self.values[key]
        if key == "stored" and found is not None:
            found = found["sampling"]
        return None if found is None else SamplingConfig.model_validate(found)

    def _read(self) -> None:
        try:
            values = read_json(self.path)
            if values["format"] != FORMAT:
                raise LimnerError(
                    f"{self.path} has format {values['format']!r}, but this version writes "
                    f"{FORMAT}; move it away to start the sweep over"
                )
            self.values |= {key: values[key] for key in self.values}
            for line in self.values["measured"]:
                found = _measurement(line)
                part, protocol = str(line["part"]), line["protocol"]
                if protocol not in self.values["protocols"]:
                    raise ValueError(f"a measurement refers to an unknown protocol {protocol!r}")
                self._known[protocol, part, found.sampling, found.count] = found
            for name in ("before", "stored"):
                self.setting(name)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ValidationError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise LimnerError(
                f"{self.path} is damaged ({reason}); move it away to start the sweep over"
            ) from None


def identity(protocol: dict[str, Any]) -> str:
    """A short id of a protocol; equal protocols have equal ids."""
    return digest(json.dumps(protocol, sort_keys=True, ensure_ascii=False)).hex()[:12]


def _measurement(line: dict[str, Any]) -> Measurement:
    numbers = {name: None if line[name] is None else float(line[name]) for name in NUMBERS}
    return Measurement(
        SamplingConfig.model_validate(line["sampling"]),
        int(line["cost"]),
        int(line["count"]),
        distance_without=tuple(float(v) for v in line["distance_without"]),
        match_without=tuple(float(v) for v in line["match_without"]),
        **numbers,
    )
