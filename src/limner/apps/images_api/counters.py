"""What the server counts, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds: the buckets of the histogram of requests."""


class Counters:
    """May be used from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: Counter[int] = Counter()
        self.images: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.drawing: Counter[str] = Counter()  # seconds
        self.within: Counter[float] = Counter()
        self.seconds = 0.0
        self.answered = 0

    def request(self, status: int, seconds: float) -> None:
        """A request for images was answered; only the seconds of those with images count."""
        with self.lock:
            self.requests[status] += 1
            if status == 200:
                self.seconds += seconds
                self.answered += 1
                self.within.update(bound for bound in BOUNDS if seconds <= bound)

    def batch(self, model: str, images: int, seconds: float) -> None:
        """A batch was drawn."""
        with self.lock:
            self.images[model] += images
            self.batches[model] += 1
            self.drawing[model] += seconds  # type: ignore[assignment]

    def text(self, running: int, waiting: int) -> str:
        """Args:
        running: requests that are being answered.
        waiting: images that wait.
        """
        with self.lock:
            return "".join(f"{line}\n" for line in self._lines(running, waiting))

    def _lines(self, running: int, waiting: int) -> Iterator[str]:
        yield from _about("limner_requests_total", "counter", "Requests for images, by status.")
        for status, count in sorted(self.requests.items()):
            yield f'limner_requests_total{{status="{status}"}} {count}'
        for name, about, counts in (
            ("images_total", "Images drawn.", self.images),
            ("batches_total", "Batches that images were drawn in.", self.batches),
            ("drawing_seconds_total", "Seconds of drawing.", self.drawing),
        ):
            yield from _about(f"limner_{name}", "counter", about)
            for model, count in sorted(counts.items()):
                yield f'limner_{name}{{model="{_escaped(model)}"}} {count:.10g}'
        yield from _about("limner_requests_running", "gauge", "Requests that are being answered.")
        yield f"limner_requests_running {running}"
        yield from _about("limner_queue_length", "gauge", "Images that wait for a device.")
        yield f"limner_queue_length {waiting}"
        name = "limner_request_seconds"
        yield from _about(name, "histogram", "Seconds until images were sent, waiting included.")
        for bound in BOUNDS:
            yield f'{name}_bucket{{le="{bound:g}"}} {self.within[bound]}'
        yield f'{name}_bucket{{le="+Inf"}} {self.answered}'
        yield f"{name}_sum {self.seconds:.10g}"
        yield f"{name}_count {self.answered}"


def _about(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
