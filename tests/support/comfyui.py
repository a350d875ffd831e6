"""As much of ComfyUI as a node sees: how it is loaded, checked, run, kept, and cancelled.

What is emulated is `load_custom_node` of its nodes.py, `validate_inputs` and the cache by inputs of
its execution.py, and three modules that nodes import, as of October 2025.
"""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch


class Interrupted(Exception):
    """`comfy.model_management.InterruptProcessingException`."""


class SaveImage:
    """ComfyUI's own node of this name, without a disk."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    CATEGORY = "image"
    OUTPUT_NODE = True
    saved: ClassVar[dict[str, torch.Tensor]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {})}}

    def save(self, images: torch.Tensor, filename_prefix: str) -> dict[str, Any]:
        self.saved[filename_prefix] = images
        return {"ui": {}, "result": ()}


class ComfyUI:
    """A running ComfyUI in a folder; `monkeypatch` takes its modules away again."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.nodes: dict[str, Any] = {"SaveImage": SaveImage}
        self.folders: dict[str, list[str]] = {}
        self.progress: list[tuple[int, int]] = []
        self.interrupt_after: int | None = None
        """How many updates of the progress bar somebody watches before "Cancel"."""
        self.ran: list[str] = []
        """The nodes that were run, not taken from the cache."""
        self.cache: dict[Any, tuple] = {}
        SaveImage.saved.clear()
        paths, utils, management = map(
            ModuleType, ("folder_paths", "comfy.utils", "comfy.model_management")
        )
        paths.models_dir = str(folder / "models")  # type: ignore[attr-defined]
        paths.add_model_folder_path = self.add_folder  # type: ignore[attr-defined]
        paths.get_folder_paths = lambda name: list(self.folders[name])  # type: ignore[attr-defined]
        utils.ProgressBar = self.bar  # type: ignore[attr-defined]
        management.InterruptProcessingException = Interrupted  # type: ignore[attr-defined]
        management.throw_exception_if_processing_interrupted = self.check  # type: ignore[attr-defined]
        management.get_torch_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
        package = ModuleType("comfy")
        package.utils, package.model_management = utils, management  # type: ignore[attr-defined]
        for module in (paths, package, utils, management):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def add_folder(self, name: str, path: str, is_default: bool = False) -> None:
        self.folders.setdefault(name, []).append(path)

    def bar(self, total: int, node_id: str | None = None) -> Any:
        def update(value: int, total: int | None = None, preview: object = None) -> None:
            assert total is not None
            assert isinstance(value, int), "it is sent as JSON, and shown"
            self.progress.append((value, total))

        return SimpleNamespace(update_absolute=update)

    def check(self) -> None:
        if self.interrupt_after is not None and len(self.progress) >= self.interrupt_after:
            raise Interrupted

    def load(self, file: Path) -> ModuleType:
        """One file of custom_nodes; its name is its path."""
        name = str(file.with_suffix(""))
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[name]
        self.nodes |= module.NODE_CLASS_MAPPINGS
        return module

    # ---- validation ----------------------------------------------------------------------------

    def problems(self, workflow: dict[str, Any]) -> list[str]:
        """What ComfyUI shows instead of queueing a workflow in its API format."""
        return [said for id in workflow for said in self._problems_of(workflow, id)]

    def _problems_of(self, workflow: dict[str, Any], id: str) -> Iterator[str]:
        node, inputs = self.nodes[workflow[id]["class_type"]], workflow[id]["inputs"]
        kinds = node.INPUT_TYPES()
        own_check = getattr(node, "VALIDATE_INPUTS", None)
        checked_by_node = inspect.getfullargspec(own_check).args if own_check else []
        for name, (kind, *options) in {**kinds["required"], **kinds.get("optional", {})}.items():
            if name not in inputs:
                if name in kinds["required"]:
                    yield f"{id}: required input is missing: {name}"
                continue
            value, options = inputs[name], options[0] if options else {}
            if isinstance(value, list):
                source, slot = value
                given = self.nodes[workflow[source]["class_type"]].RETURN_TYPES[slot]
                if given != kind:
                    yield f"{id}: {name} is {kind}, but {source} gives {given}"
                continue
            convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
            if isinstance(kind, str) and kind not in convert:
                yield f"{id}: {name} must come from a node"
                continue
            if isinstance(kind, str):
                value = inputs[name] = convert[kind](value)
            if name in checked_by_node:
                continue
            if "min" in options and value < options["min"]:
                yield f"{id}: {name} {value} is smaller than {options['min']}"
            if "max" in options and value > options["max"]:
                yield f"{id}: {name} {value} is bigger than {options['max']}"
            if isinstance(kind, list) and value not in kind:
                yield f"{id}: {name}: {value!r} is not in the list"
        if own_check:
            constants = {k: None if isinstance(v, list) else v for k, v in inputs.items()}
            said = own_check(**{k: constants[k] for k in checked_by_node if k in constants})
            if said is not True:
                yield f"{id}: {said}"

    # ---- execution -----------------------------------------------------------------------------

    def run(self, workflow: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Queue a workflow; returns what was saved, by its prefix."""
        assert self.problems(workflow) == []
        with torch.inference_mode():
            for id in workflow:
                if getattr(self.nodes[workflow[id]["class_type"]], "OUTPUT_NODE", False):
                    self._output(workflow, id)
        return dict(SaveImage.saved)

    def _output(self, workflow: dict[str, Any], id: str) -> tuple:
        key = self._key(workflow, id)
        if key not in self.cache:
            name, inputs = workflow[id]["class_type"], workflow[id]["inputs"]
            values = {
                k: self._output(workflow, v[0])[v[1]] if isinstance(v, list) else v
                for k, v in inputs.items()
            }
            node = self.nodes[name]()
            self.ran.append(name)
            given = getattr(node, node.FUNCTION)(**values)
            self.cache[key] = given["result"] if isinstance(given, dict) else given
            assert len(self.cache[key]) == len(node.RETURN_TYPES)
        return self.cache[key]

    def _key(self, workflow: dict[str, Any], id: str) -> Any:
        node, inputs = self.nodes[workflow[id]["class_type"]], workflow[id]["inputs"]
        changed = False
        if hasattr(node, "IS_CHANGED"):
            changed = node.IS_CHANGED(**inputs)
        own = tuple(
            (k, self._key(workflow, v[0]) if isinstance(v, list) else v)
            for k, v in sorted(inputs.items())
        )
        return workflow[id]["class_type"], changed, own
