"""Save a sharded model: each process writes its shard of the checkpoint."""

from __future__ import annotations

import contextlib
from pathlib import Path

from accelerate.utils import broadcast_object_list

from limner.checkpoint.folder import Contents, write_texts
from limner.checkpoint.manifest import written_whole
from limner.checkpoint.sharded import write_shard
from limner.distributed.processes import any_process


class _GivenUp(Exception):
    pass


def save_in_shards(folder: Path, contents: Contents, number: int, count: int) -> str:
    """Write a sharded checkpoint atomically and durably. Every process calls it.

    Training waits for it. The first process makes the staging folder, all write into it, and the
    first one writes the manifest.

    Args:
        contents: the shards of this process.
        number: of this process among `count`.

    Returns:
        Why it could not be written; "" if it was.
    """
    folder = folder.resolve()
    staging = [folder]
    whole = contextlib.ExitStack()
    parts = {"model": contents.model, "optimizers": contents.optimizers}
    if contents.averaged is not None:
        parts["averaged"] = contents.averaged

    def begin() -> None:
        if number == 0:
            staging[0] = whole.enter_context(written_whole(folder))

    def write() -> None:
        broadcast_object_list(staging)
        write_shard(staging[0], number, count, parts)

    def finish() -> None:
        if number == 0:
            write_texts(staging[0], contents)
            whole.close()

    for do in (begin, write, finish):
        reason = ""
        try:
            do()
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
        if any_process(bool(reason)):
            with contextlib.suppress(_GivenUp), whole:
                raise _GivenUp
            return reason or "another process could not write its part"
    return ""
