"""The chosen settings as a YAML file, with a comment beside each, to be changed and used again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from limner.config.loading import Sections
from limner.console import one_line
from limner.files.atomic import write_text_whole

_REQUEST = re.compile(r"^# chosen for: (\{.*\})$", re.MULTILINE)
_RATE = re.compile(r"^# expected: about (\S+) images/s$", re.MULTILINE)
COMMENTS = {
    "data.dataset_path": "folder or file of your pictures and captions",
    "data.image_size": "pixels a side; cost grows with the number of patches",
    "model.patch_size": "image_size / patch_size = patches a side",
    "model.hidden_size": "width",
    "text_encoder.max_length": "tokens of a caption; longer ones are cut",
    "training.output_dir": "checkpoints, log, previews, report",
    "training.max_minutes": "longer is better: the same settings go on with --resume latest",
    "training.batch_size": "images at a time; halve it if memory is short, and double",
    "training.gradient_accumulation_steps": "this",
    "training.num_workers": "processes that load images; 0: none",
    "training.preview_steps": "steps between previews",
    "training.heldout_steps": "steps between measurements of the held-out loss",
    "training.save_steps": "steps between checkpoints; one more is written at each lowest "
    "held-out loss, and the best is kept",
    "training.init_from": "model that the run begins with",
    "sampling.scheduler_type": "limner sweep finds the best for your model",
    "sampling.guidance_scale": "higher: closer to the prompt, less variety",
}


def write(
    path: Path, sections: Sections, about: list[str], request: dict[str, Any], rate: float
) -> None:
    """Write the file.

    Args:
        about: sentences for its head.
        request: what it was chosen for, as `read_request` gives it back.
        rate: images per second that are expected, as `read_rate` gives it back.
    """
    lines = [f"# {one_line(sentence)}".rstrip() for sentence in about]
    lines.append(f"# chosen for: {json.dumps(request, ensure_ascii=False, sort_keys=True)}")
    lines.append(f"# expected: about {rate:.4g} images/s")
    for section, keys in sections.items():
        lines.append(f"{section}:")
        for key, value in keys.items():
            said = f"  {key}: {json.dumps(value, ensure_ascii=False)}"
            comment = COMMENTS.get(f"{section}.{key}")
            lines.append(f"{said:32}  # {comment}" if comment else said)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, "\n".join(lines) + "\n")


def read_rate(path: Path) -> float | None:
    """The images per second that were expected; None: there is no file, or it does not say."""
    try:
        found = _RATE.search(path.read_text(encoding="utf-8"))
        return float(found[1]) if found else None
    except (OSError, ValueError):
        return None


def read_request(path: Path) -> dict[str, Any] | None:
    """What an earlier file was chosen for; None: there is none, or it does not say."""
    try:
        found = _REQUEST.search(path.read_text(encoding="utf-8"))
        value = json.loads(found[1]) if found else None
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
