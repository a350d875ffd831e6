"""Public copies of the files of a run, without paths, file names, and private names.

The original files are not modified.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from limner.checkpoint.find_model import WEIGHTS_FILE
from limner.checkpoint.folder import Checkpoint
from limner.checkpoint.lineage import A_PRIVATE_SET, LICENSES
from limner.checkpoint.single_file import WeightsFile
from limner.config import Config
from limner.config.defaults import changed
from limner.redaction import is_hub_id, places_of, redacted, shown_place
from limner.text.known_words import KnownWords

QUOTED = ("prompt", "caption")
"""Keys of results whose values are captions, which are not redacted."""
NAMES_OF_A_SET = ("dataset_name", "dataset_config", "dataset_split")
"""Keys of `data` that are removed for a private data set."""
_COUNTS = re.compile(r"[\d,]+ pictures? with [\d,]+ captions?")
_RULE = re.compile(r"Held out .*?\.(?=\s|$)")


def is_public_set(config: Config) -> bool:
    """Whether the data set has a public name: it is built in, or on the Hub."""
    name = config.data.dataset_name or ""
    return name.lower() in LICENSES or is_hub_id(name)


def public_words(opened: Checkpoint | WeightsFile) -> KnownWords | None:
    """The words of its captions, unless it, or a model before it, learned from private ones."""
    learned = (opened.lineage, *opened.lineage.models_before())
    public = all(one.complete and all(data.name for data in one.data) for one in learned)
    return opened.words if public and is_public_set(opened.config) else None


def public_name(config: Config, said: str | None = None) -> str:
    """The public name of the data set: the publisher's, or its own if it is public."""
    if said:
        return said
    return str(config.data.dataset_name) if is_public_set(config) else A_PRIVATE_SET


def public_config(config: Config) -> Config:
    """The configuration without local paths and names.

    A pretrained component keeps its Hub id; one in a folder becomes `./` and the name of the
    folder, which is searched for next to the file.
    """
    plain = Config()
    data = {"dataset_path": plain.data.dataset_path, "allowed_paths": None, "image_column": None}
    training = {"output_dir": plain.training.output_dir, "init_from": None, "run_name": None}
    if not is_public_set(config):  # split names may be private, and previews are its captions
        data |= {key: getattr(plain.data, key) for key in NAMES_OF_A_SET}
        training |= {"preview_prompts": None}
    training |= {"resume": plain.training.resume, "tracker_project": plain.training.tracker_project}
    networks = dict.fromkeys(("reference", "inception", "dinov2", "clip"))
    return config.model_copy(
        update={
            "data": changed(config.data, **data, caption_column=None),
            "training": changed(config.training, **training),
            "vae": _public_part(config.vae),
            "text_encoder": _public_part(config.text_encoder),
            "lora": plain.lora,  # merged into the weights
            "cache": changed(config.cache, folder=plain.cache.folder),
            "evaluation": changed(config.evaluation, **networks),
        }
    )


def public_results(results: dict[str, Any], config: Config, name: str) -> dict[str, Any]:
    """Public results of a run or an evaluation.

    Args:
        name: of the data set, from `public_name`.
    """
    dataset = results.get("dataset") or {}
    places = [*places_of(config.model_dump()), str(dataset.get("name") or "")]
    if is_public_set(config):
        return redacted(results, filter(None, places), QUOTED)
    own = str(dataset.get("description") or "")
    about = public_description(own, name)

    def told(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {k: v if k in QUOTED else told(v) for k, v in tree.items()}
        if isinstance(tree, list):
            return [told(value) for value in tree]
        return tree.replace(own, about) if own and isinstance(tree, str) else tree

    results = told(results)
    if dataset:
        results["dataset"] = results["dataset"] | {"name": name, "description": about}
    return redacted(results, filter(None, places), QUOTED)


def public_evaluation(
    found: dict[str, Any], config: Config, name: str, repo: str
) -> dict[str, Any]:
    """A public evaluation.json, with the command for the model in `repo`."""
    found = public_results(found, config, name)
    found["checkpoint"] = found["checkpoint"] | {"path": WEIGHTS_FILE}
    found["command"] = f"limner evaluate {repo}" if found.get("command") else None
    if not is_public_set(config):  # remove file names
        found["events"] = [str(event).partition(", such as ")[0] for event in found["events"]]
        found["refused"] = [
            {"key": str(number), "reason": "an unreadable image"}
            for number, _ in enumerate(found.get("refused", ()), start=1)
        ]
    return found


def public_description(description: str, name: str) -> str:
    """The description of a private data set: its size and the rule of the held-out split."""
    counts, rule = _COUNTS.match(description), _RULE.search(description)
    said = [f"{counts[0]} from {name}." if counts else "", rule[0] if rule else ""]
    return " ".join(filter(None, said))


def _public_part(section: Any) -> Any:
    name = section.pretrained_model_name
    if name is None or is_hub_id(name):
        return section
    return changed(section, pretrained_model_name=f"./{shown_place(Path(name).as_posix(), False)}")
