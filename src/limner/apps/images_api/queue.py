"""Requests wait for a device, and those that fit together are drawn together.

A picture depends on its prompt, seed, and settings only, and not on what else is drawn in its
batch (at most 1/255 in float32), so images of several requests may share one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from PIL import Image

from limner.apps.images_api.errors import ApiError, stopping
from limner.errors import LimnerError
from limner.memory import in_parts_that_fit
from limner.messages import plural

log = logging.getLogger(__name__)


class Generator(Protocol):
    """What is used of an `ImageGenerator`."""

    words: Any

    def generate_batch(self, prompts: Sequence[str], **settings: Any) -> list[Image.Image]: ...

    def at_once(self, most: int, height: int, width: int) -> int: ...

    def notes(self, prompts: Sequence[str], height: int, width: int) -> list[str]: ...


class Settings(NamedTuple):
    """What images of one batch have in common."""

    model: str
    height: int
    width: int
    others: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments of `ImageGenerator.generate_batch`."""

    def with_more(self, others: dict[str, Any]) -> Settings:
        return self._replace(others=(*self.others, *others.items()))


class Drawing:
    """The images of one request, which are drawn in one or several batches.

    Args:
        images: prompt and seed of each.
    """

    def __init__(self, settings: Settings, images: Sequence[tuple[str, int]]) -> None:
        self.settings, self.images = settings, list(images)
        self.begun = 0
        """How many were handed to the device."""
        self.dropped = False
        """Whether nobody waits for it any more."""
        self.drawn: list[Image.Image] = []
        self.notes: list[str] = []
        """What of the prompt was not read, and what of it the model does not know."""
        self.result: Future[list[Image.Image]] = Future()

    @property
    def left(self) -> int:
        return len(self.images) - self.begun

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.dropped = True
            self.result.set_exception(error)


class Unwanted(Exception):
    """Every client of a batch has gone."""


class Worker:
    """Draws on one device, in a thread of its own.

    Args:
        generators: by the names of their models.
        batch_size: most images at once; on a CPU it may be fewer (`ImageGenerator.at_once`), and
            after memory ran out it is fewer for that model and size.
        most_waiting: most images that wait; one that begins does not wait any more.
        count: called with the model's name, the number of images drawn, and the seconds taken.
    """

    def __init__(
        self,
        generators: dict[str, Generator],
        batch_size: int,
        most_waiting: int,
        count: Callable[[str, int, float], None],
    ) -> None:
        self.generators, self.batch_size = generators, batch_size
        self.most_waiting, self.count = most_waiting, count
        self.waiting: deque[Drawing] = deque()
        self.stopping = False
        self.seconds = 1.0
        """For one image, lately."""
        self.fits: dict[tuple[str, int, int], int] = {}
        """Images at once that memory sufficed for, where `batch_size` were too many."""
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True, name="limner-drawing")
        self.thread.start()

    def length(self) -> int:
        """Images that wait."""
        with self.changed:
            return self._length()

    def _length(self) -> int:
        return sum(drawing.left for drawing in self.waiting)

    def add(self, drawing: Drawing) -> None:
        """Let it wait. Raises ApiError if there is no room, or the server is stopping."""
        with self.changed:
            if self.stopping:
                raise stopping()
            if (length := self._length()) + len(drawing.images) > self.most_waiting:
                raise ApiError(
                    429,
                    f"{length} {plural(length, 'image')} waiting already, and at most "
                    f"{self.most_waiting} may; try again later",
                    code="rate_limit_exceeded",
                    retry_after=length * self.seconds,
                )
            self.waiting.append(drawing)
            self.changed.notify()

    def drop(self, drawing: Drawing) -> None:
        """Nobody waits for it any more: what is not begun is not drawn, and a batch that nobody
        else waits for ends at its next step."""
        with self.changed:
            drawing.dropped = True
            if drawing in self.waiting:
                self.waiting.remove(drawing)

    def stop(self) -> None:
        """Take nothing more. What is begun is finished; what is not is refused."""
        with self.changed:
            self.stopping = True
            for drawing in [one for one in self.waiting if not one.begun]:
                self.waiting.remove(drawing)
                drawing.fail(stopping())
            self.changed.notify()

    def _work(self) -> None:
        while self._draw_next():
            pass  # and nothing of what was drawn is kept meanwhile

    def _draw_next(self) -> bool:
        """Returns whether there was anything to draw; if not, it is the end."""
        if batch := self._next():
            self._draw(batch)
        return bool(batch)

    def _next(self) -> list[tuple[Drawing, int]]:
        """The next batch, as drawings and the number of an image of theirs: images of the drawing
        that waits longest, and of others with the same settings. []: the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.stopping)
            if not self.waiting:
                return []
            batch: list[tuple[Drawing, int]] = []
            settings = self.waiting[0].settings
            most = self._at_once(settings)
            for drawing in [one for one in self.waiting if one.settings == settings]:
                some = min(drawing.left, most - len(batch))
                batch += [(drawing, drawing.begun + i) for i in range(some)]
                drawing.begun += some
                if not drawing.left:
                    self.waiting.remove(drawing)
                if len(batch) == most:
                    break
            return batch

    def _at_once(self, settings: Settings) -> int:
        model, height, width, _ = settings
        most = self.fits.get((model, height, width), self.batch_size)
        return max(1, self.generators[model].at_once(most, height, width))

    def _draw(self, batch: list[tuple[Drawing, int]]) -> None:
        begin = time.perf_counter()
        try:
            images = self._images(batch)
        except Unwanted:
            return
        except Exception as error:
            drawings = list(dict.fromkeys(drawing for drawing, _ in batch))
            if len(drawings) == 1:
                self._fail(drawings[0], error)
                return
            for drawing in drawings:  # what is wrong with one is not the others' business
                self._draw([(one, i) for one, i in batch if one is drawing])
            return
        seconds = time.perf_counter() - begin
        self.seconds += 0.3 * (seconds / len(batch) - self.seconds)
        self.count(batch[0][0].settings.model, len(batch), seconds)
        with self.changed:
            for (drawing, _), image in zip(batch, images, strict=True):
                drawing.drawn.append(image)
                if len(drawing.drawn) == len(drawing.images) and not drawing.dropped:
                    drawing.dropped = True
                    drawing.result.set_result(drawing.drawn)

    def _images(self, batch: list[tuple[Drawing, int]]) -> list[Image.Image]:
        """Raises Unwanted."""
        model, height, width, others = batch[0][0].settings
        generator = self.generators[model]
        for drawing in {drawing for drawing, _ in batch if not drawing.drawn}:
            prompt = drawing.images[0][0]
            tokens, most = generator.words.length(prompt), generator.words.max_length
            drawing.notes = generator.notes([prompt], height, width)
            if tokens > most:
                said = f"the prompt has {tokens} tokens; the model read the first {most} and no"
                drawing.notes.append(f"{said} more")

        def go_on(step: int, steps: int, x0: object) -> None:
            if all(drawing.dropped for drawing, _ in batch):
                raise Unwanted

        def draw(size: int) -> list[Image.Image]:
            if size < len(batch):
                self.fits[model, height, width] = size
            return self.generators[model].generate_batch(
                [drawing.images[i][0] for drawing, i in batch],
                seeds=[drawing.images[i][1] for drawing, i in batch],
                height=height,
                width=width,
                batch_size=size,
                progress=go_on,
                **dict(others),
            )

        return in_parts_that_fit(len(batch), draw)

    def _fail(self, drawing: Drawing, error: Exception) -> None:
        if isinstance(error, LimnerError):
            failed = ApiError(400, str(error), code="invalid_value")
        else:
            log.error("drawing failed with %s: %s", type(error).__name__, error)
            log.debug("traceback:", exc_info=error)
            failed = ApiError(
                500, "drawing failed; the server's log says why", code="drawing_failed", retry=False
            )
        with self.changed:
            if drawing in self.waiting:
                self.waiting.remove(drawing)
            if not drawing.dropped:
                drawing.fail(failed)
