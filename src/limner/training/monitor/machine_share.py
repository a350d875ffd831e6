"""Detect a shared machine: how much CPU time the threads of a run get, and what others use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

GETS_LESS = 0.85
"""Share of its threads' CPU time below which a run counts as slowed down, if others use the
machine."""
OTHERS_USE = 0.15
"""Share of the machine's CPU time from which on others count as using it."""


class CpuTimes(NamedTuple):
    """CPU times in seconds, each counted from an arbitrary start."""

    wall: float
    own: float
    """CPU time of this process, all threads."""
    helpers: float
    """CPU time of the processes that it started."""
    busy: float
    """CPU time of all processes on the machine."""


class Shared(NamedTuple):
    """The share of a shared machine that a run gets, from 0 to 1."""

    gets: float
    """Its share of the time that its threads could have computed."""
    others: float
    """The share of the machine that others use."""
    threads: int

    def in_words(self) -> str:
        return (
            f"other programs use {self.others:.0%} of this machine: training gets {self.gets:.0%} "
            f"of the CPU time of its {self.threads} threads, and runs more slowly"
        )


def cpu_times() -> CpuTimes:
    helpers = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has ended
            continue
        helpers += times.user + times.system
    times = psutil.cpu_times()
    return CpuTimes(
        time.perf_counter(), time.process_time(), helpers, times.user + times.system + times.nice
    )


class MachineShare:
    """Measures CPU use between two calls of `look`.

    A thread that waits for data or a disk gets less, too, so the machine only counts as shared if
    others use it.
    """

    def __init__(self, times: Callable[[], CpuTimes] = cpu_times) -> None:
        self.times, self.before = times, times()

    def look(self) -> Shared | None:
        """The share since the last call, if other programs slowed the run down."""
        before, self.before = self.before, self.times()
        wall, own, helpers, busy = (
            now - then for now, then in zip(self.before, before, strict=True)
        )
        cores, threads = psutil.cpu_count() or 1, torch.get_num_threads()
        if wall < 0.5:  # the system counts in hundredths of a second
            return None
        gets = own / (wall * min(threads, cores))
        others = max(0.0, busy - own - max(0.0, helpers)) / (wall * cores)
        if gets >= GETS_LESS or others < OTHERS_USE:
            return None
        return Shared(gets, min(1.0, others), threads)
