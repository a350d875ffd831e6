"""A process ends with the one that started it."""

import os
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import time
from limner.files.process_identity import end_with_the_parent
end_with_the_parent(0.02)
print("begun", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_process_ends_once_its_parent_is_gone(killed: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            if killed:
                parent.kill()
                child.wait(timeout=30)
                assert not child.is_running()
            else:
                time.sleep(0.3)
                assert child.is_running()
        finally:
            parent.kill()
            if child.is_running():
                child.kill()
