"""Asynchronous saving: weights are copied, a thread writes them, old checkpoints are pruned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from limner.checkpoint.folder import Contents, save_checkpoint
from limner.checkpoint.locate import checkpoints
from limner.checkpoint.manifest import remove_written
from limner.errors import LimnerError
from limner.files.folder_lock import is_in_use
from limner.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Saver:
    """Context manager around a run; waits for pending writes on exit.

    At most one checkpoint is being written: if the disk is too slow, the run waits rather than
    filling memory.

    Args:
        keep: how many of the newest numbered checkpoints to keep; None: all. Older ones are deleted
            only once a new one is durable.
        best: returns the step of a checkpoint to keep whatever its age, or None.
        stop_on_error: raise if a checkpoint could not be written; else log it and go on with the
            last good checkpoint.
    """

    def __init__(
        self, keep: int | None, best: Callable[[], int | None], stop_on_error: bool
    ) -> None:
        self.keep, self.best, self.stop_on_error = keep, best, stop_on_error
        self.threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: tuple[Path, Future[list[str]]] | None = None
        self.failed: str | None = None
        """Why the newest checkpoint could not be written; None: it was."""
        self.told: set[str] = set()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except LimnerError:
            if error is None:
                raise
        finally:
            self.threads.shutdown()

    def save(self, folder: Path, contents: Contents) -> None:
        """Start writing a checkpoint of the current state in the background."""
        self.wait()
        try:
            copy: Contents | None = contents.copied()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            copy = None
        # If a copy does not fit, the live weights are written while training waits.
        self.pending = folder, self.threads.submit(self._write, folder, copy or contents)
        if copy is None:
            self.wait()

    def poll(self) -> None:
        """Handle the result of a write that has finished. Raises LimnerError (see
        `stop_on_error`)."""
        if self.pending is not None and self.pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending write, then handle its result as `poll` does."""
        if self.pending is None:
            return
        (folder, future), self.pending = self.pending, None
        error = future.exception()
        self.failed = None
        if error is None:
            self.tell(future.result())
            return
        if isinstance(error, LimnerError):
            raise error
        self.not_written(folder, " ".join(str(error).split())[:300] or type(error).__name__)

    def not_written(self, folder: Path, reason: str) -> None:
        """Log that a write failed, or raise LimnerError (see `stop_on_error`)."""
        try:
            good = checkpoints(folder.parent)
            last = f"the last good one is {good[-1].name}" if good else "there is none yet"
        except OSError as error:
            last = f"other checkpoints cannot be listed either ({error.strerror})"
        self.failed = f"{folder} could not be written ({reason}); {last}"
        if self.stop_on_error:
            raise LimnerError(
                f"{self.failed}. Free some disk space, or set another training.output_dir."
            )
        log.info(f"{self.failed}. Training continues and tries again at the next save.")

    def _write(self, folder: Path, contents: Contents) -> list[str]:
        save_checkpoint(folder, contents)
        return self.prune(folder.parent)

    def prune(self, run_folder: Path) -> list[str]:
        """Delete older checkpoints once a newer one is durable; files that users added stay.

        Returns:
            What could not be deleted, for `tell` to log, because this runs in another thread.
        """
        notes: list[str] = []
        if not self.keep:
            return notes
        best = f"checkpoint-{self.best()}"
        for old in checkpoints(run_folder)[: -self.keep]:
            if old.name == best or is_in_use(old):  # by limner sweep; deleted next time
                continue
            what = ""
            try:
                if kept := remove_written(old):
                    more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
                    what = f"was deleted except for your own files: {kept[0]}{more}"
            except OSError as error:  # such as a file that is open, on Windows
                what = f"could not be deleted ({error.strerror or error})"
            if what:
                notes.append(f"{old}, older than the checkpoints to keep, {what}")
        return notes

    def tell(self, notes: list[str]) -> None:
        """Log what pruning could not delete, each once."""
        for note in notes:
            if note not in self.told:
                self.told.add(note)
                log.info(note)
