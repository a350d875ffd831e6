"""Experiment trackers: tensorboard, wandb, trackio, comet_ml, mlflow.

They are accelerate's. None needs an account: without a login they write to this machine. If one
fails, this is logged and the others go on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml
from PIL import Image

from limner.config import Config
from limner.errors import LimnerError
from limner.files.atomic import write_text_whole
from limner.files.small_files import read_json
from limner.redaction import redact_urls, redacted_settings, shown_command

log = logging.getLogger("limner.trackers")
"""Outside `limner.training`, whose messages a run keeps in its log: another start may use other
trackers."""
PACKAGES = {"comet_ml": "comet-ml"}
"""Names of packages for pip, where they differ from accelerate's."""
IDS = "trackers.json"
"""File in the run's folder with each tracker's id of this run, so that a resumed run continues
there."""


def check_trackers(config: Config) -> None:
    """Raises LimnerError if a requested tracker is not installed or unknown to accelerate."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in _asked(config):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise LimnerError(
                f"training.trackers: this version of accelerate has no {name}; run pip install -U "
                "accelerate"
            )
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise LimnerError(
                f"training.trackers: {name} is not installed; run pip install "
                f"{PACKAGES.get(name, name)}, or use training.trackers=tensorboard"
            )


def _asked(config: Config) -> list[str]:
    return [name for name in dict.fromkeys(config.training.trackers) if name != "none"]


class Trackers:
    """The trackers of a run, in its main process only.

    Args:
        resumed_at: step from which the run resumes; 0: it is new.
    """

    def __init__(self, config: Config, resumed_at: int) -> None:
        self.config, self.resumed_at = config, resumed_at
        self.folder = Path(config.training.output_dir)
        self.name = config.training.run_name or self.folder.absolute().name
        self.running: dict[str, Any] = {}
        self.ids = _read_ids(self.folder / IDS) if resumed_at else {}

    def start(self) -> None:
        known = dict(self.ids)
        for name in _asked(self.config):
            self._try(name, lambda name=name: self._start(name))  # type: ignore[misc]
        if self.ids != known:
            write_text_whole(self.folder / IDS, json.dumps(self.ids, indent=1))

    def log(self, numbers: dict[str, int | float], step: int) -> None:
        for name, tracker in list(self.running.items()):
            self._try(name, lambda tracker=tracker: tracker.log(numbers, step=step))  # type: ignore[misc]

    def image(self, path: Path, step: int) -> None:
        """A preview."""
        for name, tracker in list(self.running.items()):
            self._try(name, lambda n=name, t=tracker: _log_image(n, t, path, step))  # type: ignore[misc]

    def finish(self) -> None:
        for name, tracker in list(self.running.items()):
            self._try(name, tracker.finish)
        self.running.clear()

    def _try(self, name: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:  # each tracker has its own errors
            self.running.pop(name, None)
            reason = redact_urls(" ".join(str(error).split()))[:300] or type(error).__name__
            log.warning(f"the tracker {name} failed and is disabled: {reason}")

    def _start(self, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        project = "tensorboard" if name == "tensorboard" else self.config.training.tracker_project
        tracker = LOGGER_TYPE_TO_CLASS[name](project, **self._how(name))
        with _redacted_command_line():
            tracker.start()
        self.running[name] = tracker
        if name == "mlflow":
            self.ids[name] = tracker.tracker.info.run_id
        if name == "tensorboard":  # its own method would start another run
            text = yaml.safe_dump(self._shown(), sort_keys=False, allow_unicode=True)
            text = f"```yaml\n{text}```"
            tracker.tracker.add_text("config", text.replace("\n", "\n\t"), self.resumed_at)
        elif not self.resumed_at:  # mlflow accepts each value only once
            tracker.store_init_configuration(_flat(self._shown()))

    def _shown(self) -> dict[str, Any]:
        """The configuration, redacted so that it may leave this machine."""
        return redacted_settings(self.config.model_dump(mode="json"))

    def _how(self, name: str) -> dict[str, Any]:
        """Arguments of each tracker: the run's name, its folder, and how to resume it."""
        if name == "tensorboard":
            later = {"purge_step": self.resumed_at + 1} if self.resumed_at else {}
            return {"logging_dir": str(self.folder), **later}
        if name == "wandb":
            offline = not (os.environ.get("WANDB_MODE") or _wandb_login())
            if offline:
                log.warning("wandb: not logged in, so it runs offline (upload with wandb sync)")
            return {
                "name": self.name,
                "id": self._id(name),
                "resume": "allow",
                "dir": str(self.folder),
                # It would capture the program's output.
                "settings": {"console": "off"},
                **({"mode": "offline"} if offline else {}),
            }
        if name == "trackio":
            # Its runs are resumed by name, so the name must be unique.
            begun = self.ids.setdefault(name, f"{self.name}-{uuid.uuid4().hex[:6]}")
            return {"name": begun, "resume": "allow", "embed": False}
        if name == "comet_ml":
            import comet_ml

            online = bool(comet_ml.get_config("comet.api_key"))
            if not online:
                log.warning("comet_ml: no API key, so it runs offline (upload with comet upload)")
            begun = "get" if name in self.ids else "create"
            place = {} if online else {"offline_directory": str(self.folder / "comet")}
            return {
                "online": online,
                "experiment_key": self._id(name),
                "mode": "get_or_create" if online else begun,
                "experiment_config": comet_ml.ExperimentConfig(name=self.name, **place),
            }
        if name == "mlflow":
            return {"run_name": self.name, "run_id": self.ids.get(name)}
        return {"logging_dir": str(self.folder)} if name == "aim" else {}

    def _id(self, name: str) -> str:
        return self.ids.setdefault(name, uuid.uuid4().hex)


def _log_image(name: str, tracker: Any, path: Path, step: int) -> None:
    if name == "mlflow":
        tracker.log_artifact(str(path), "previews")
    elif name == "comet_ml":
        tracker.tracker.log_image(str(path), name="preview", step=step)
    elif name == "trackio":
        import trackio

        tracker.log({"preview": trackio.Image(str(path))}, step=step)
    elif name == "tensorboard":
        import numpy as np

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
        tracker.log_images({"preview": pixels}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        with Image.open(path) as image:
            shown = image.convert("RGB")
        tracker.log_images({"preview": shown if name == "aim" else [shown]}, step=step)


def _wandb_login() -> bool:
    """Whether wandb would find a key: in its environment variable, or where `wandb login` stores
    it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else []
    files += [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        if file.is_file():
            return f"machine {host}" in file.read_text(encoding="utf-8", errors="replace")
    return False


def _read_ids(path: Path) -> dict[str, str]:
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return (
        {k: v for k, v in values.items() if isinstance(v, str)} if isinstance(values, dict) else {}
    )


@contextlib.contextmanager
def _redacted_command_line() -> Iterator[None]:
    """Redact sys.argv, which some trackers send along, with data.dataset_path=... in it."""
    typed = sys.argv
    sys.argv = shown_command(typed)
    try:
        yield
    finally:
        sys.argv = typed


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Map each `section.key` to a plain value, or to its text."""
    return {
        f"{section}.{key}": v if v is None or isinstance(v, bool | int | float | str) else str(v)
        for section, values in settings.items()
        for key, v in values.items()
    }
