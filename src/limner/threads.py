"""OpenMP threads that do not spin while they wait; to be set before torch is imported."""

from __future__ import annotations

import os

OPENMP = {
    "GOMP_SPINCOUNT": "3000",  # of GCC's OpenMP, which torch has on Linux
    "KMP_BLOCKTIME": "0",  # milliseconds; of LLVM's and Intel's, on macOS and Windows
}
"""How long a thread of OpenMP that waits for the others spins before it sleeps.

By default it spins so long that, while a program of somebody else's has a core, all threads of a
run spin in wait for the one that is not running, and two runs on one machine nearly stand still.
A count is another time on every processor: beside the best setting of the same round, 1000 cost a
run that is alone 13, 32, and 1 % on three of them, 3000 cost 17, 8, and 1 %, and both keep more
than half of a fair share in company. Results are the same to the bit. Measured:
benchmarks/shared_machine.py, docs/reliability.md.
"""


def share_the_machine() -> None:
    """Let threads sleep soon when they wait; what the environment says already stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in OPENMP.items():
            os.environ.setdefault(name, value)
