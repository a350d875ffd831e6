"""What several test files share: a configuration of the smallest run that has every part."""

import gc
import logging
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from built import checkout, installed, wheel  # noqa: F401, fixtures
from fake_trackers import fake  # noqa: F401, a fixture
from recording_hub import TOKEN, Recorded, point_client_at, recording_hub
from students import build, distilled  # noqa: F401, fixtures
from tiny import TINY

from limner import console
from limner import device as devices
from limner.checkpoint.inherit import load_run_config
from limner.cli import main
from limner.config import Config
from limner.training.monitor import throughput

# pytest has handlers of its own, to which what is logged would be left.
console._voice.commanded = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Names of files that are no UTF-8, as log records have them, cannot be sent from one process
    of pytest-xdist to the other."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


# The tensors of these tests are so small that handing them to threads costs more than it saves.
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_is_no_garbage() -> None:
    """Pretrained parts are let go of by `gc.collect()`, which looks through all of the libraries
    that the tests have imported: 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def the_voice_is_put_back() -> Iterator[None]:
    """Commands set it for the whole process: after `--log-level debug`, all that follows would be
    run as in debugging, which compiles nothing and prints tracebacks; after a command whose stdout
    is its result, all would be told on stderr."""
    loggers, voice = [logging.getLogger(name) for name in ("", "limner")], console._voice
    levels = [each.level for each in loggers]
    before = voice.level, voice.stderr, voice.muted
    yield
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
    voice.setLevel(before[0])
    _, voice.stderr, voice.muted = before


@pytest.fixture
def tiny_config(tmp_path: Path, quick_end: None) -> Callable[..., Config]:
    """tiny_config("section.key=value", ...): seconds of training, into `tmp_path / "run"`."""

    def configured(*overrides: str) -> Config:
        return load_run_config(
            None, [*TINY, f"training.output_dir='{tmp_path / 'run'}'", *overrides]
        )

    return configured


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run ends by measuring the processor, which takes longer than these runs."""
    monkeypatch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """What is started hears of signals, also where the tests run under nohup or in the background
    of a script: what is ignored there would be ignored by it, too."""
    handlers = {"SIGHUP": signal.SIG_DFL, "SIGINT": signal.default_int_handler}
    numbers = {getattr(signal, n): h for n, h in handlers.items() if hasattr(signal, n)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def float16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor passes for one that multiplies float16; it is quick enough for tests."""
    monkeypatch.setattr(devices, "multiplies_in_hardware", lambda dtype, device: True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and, in outputs/, what `limner train` made of it; only to be read."""
    folder = tmp_path_factory.mktemp("trained")
    output = f"training.output_dir='{folder / 'outputs'}'"
    (folder / "tiny.yaml").write_text(load_run_config(None, [*TINY, output]).to_yaml(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "matmul_peak", lambda device, dtype: 1e12)
        assert main(["train", "--config", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """A Hub that the client finds, where one is logged in with TOKEN."""
    with recording_hub() as recorded:
        point_client_at(recorded.address, tmp_path / "hub", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield recorded
