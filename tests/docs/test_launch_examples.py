"""examples/: what is in them is understood by those who are to read it, and the Slurm job runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import events, messages
from tiny import TINY
from torch.distributed.run import get_args_parser

from limner.checkpoint.locate import checkpoints
from limner.cli import build_parser
from limner.commands.common import as_overrides
from limner.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"


def understood(words: list[str]) -> Any:
    """torchrun's flags; the limner command that they start is parsed, too."""
    assert words[0] == "torchrun"
    torchrun = get_args_parser().parse_args(words[1:])
    assert torchrun.module
    assert torchrun.training_script == "limner"
    options, rest = build_parser().parse_known_args(torchrun.training_script_args)
    assert options.run.__module__ == "limner.commands.train"
    load_config(None, as_overrides(rest))
    return torchrun


def test_the_kubernetes_job() -> None:
    text = (EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8")
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    torchrun = understood(container["command"])
    assert int(torchrun.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    # The first pod is found by the name that the service gives it.
    name = service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert torchrun.rdzv_endpoint.startswith(f"{job['metadata']['name']}-0.{name}:")
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    given = {e["name"]: e["value"] for e in container["env"]}
    assert given["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_the_slurm_job_is_consistent() -> None:
    text = (EXAMPLES / "slurm.sbatch").read_text(encoding="utf-8")
    given = directives(text)
    assert given["ntasks-per-node"] == "1"  # of torchrun
    assert "requeue" in given
    who, _, seconds = given["signal"].partition("@")
    assert who == "B:USR1"
    (patience,) = [line for line in text.splitlines() if "SHUTDOWN_TIMEOUT=" in line]
    assert int(patience.partition("=")[2]) < int(seconds)


# As Slurm does, every process of the step gets what srun is sent.
SRUN = """
import psutil, signal, subprocess, sys
def forward(number, frame):
    for process in [*psutil.Process(step.pid).children(recursive=True), step]:
        process.send_signal(number)
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
open(TOLD, "a").write(" ".join(words) + "\\n")
step = subprocess.Popen(words)
signal.signal(signal.SIGTERM, forward)
sys.exit(1 if step.wait() else 0)
"""
SCONTROL = """
import sys
open(TOLD, "a").write("scontrol " + " ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "show":
    print("127.0.0.1\\nanother")
"""
RUN = "from torch.distributed.run import main; main()"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on one machine, with stand-ins for Slurm's programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    told = tmp_path / "told"
    for name, script in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": RUN}.items():
        (programs / name).write_text(f"#!{sys.executable}\nTOLD = {str(told)!r}\n{script}")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "m[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "LIMNER_PROCESSES": "1",
        "LIMNER_PORT": "0",
    }


@pytest.mark.skipif(shutil.which("bash") is None, reason="Slurm's jobs are for bash")
def test_a_slurm_job_whose_time_is_over_is_saved_requeued_and_goes_on(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    run = tmp_path / "run"
    settings = [*TINY, f"training.output_dir={run}", "training.max_steps=120"]
    settings += ["training.save_steps=1000", "training.heldout_steps=1000"]
    (tmp_path / "c.yaml").write_text(load_config(None, settings).to_yaml(), encoding="utf-8")
    command = ["bash", str(EXAMPLES / "slurm.sbatch"), "--config", str(tmp_path / "c.yaml")]

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=slurm, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    job = started()
    deadline = time.monotonic() + 60
    while not ((run / "log.jsonl").is_file() and events(run, "train")):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert told[-1] == "scontrol requeue 7"
    (saved,) = checkpoints(run)
    assert 0 < int(saved.name.partition("-")[2]) < 120
    understood([w for w in told[1].split() if not w.startswith("training.")])

    job = started()
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert any(m.startswith("resumed at step") for m in messages(run))
    assert checkpoints(run)[-1].name == "checkpoint-120"
    told = (tmp_path / "told").read_text(encoding="utf-8").splitlines()
    assert told.count("scontrol requeue 7") == 1
