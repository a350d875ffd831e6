"""Folders of photographs, as people have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from limner.config import Config


def image(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


def photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        image({"a": "red", "b": "green", "c": "blue"}[name]).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def of(tiny_config: Build, data: Path | str, output: Path | str, *more: str) -> Config:
    words = (f"data.dataset_path='{data}'", f"training.output_dir='{output}'")
    return tiny_config("data.dataset_name=null", "data.num_samples=null", *words, *more)


Build = Callable[..., Config]
