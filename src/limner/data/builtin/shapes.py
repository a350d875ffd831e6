"""The built-in data set "shapes": pictures drawn from a small grammar of captions.

It is for tests and for teaching: `shapes_checker` reads a picture back and says which parts of its
caption hold, so "does the model do what the words say" has an exact answer. The grammar:

    a <size> <colour> <shape> <position>                                     240 scenes
    <two | three> <colour> <shape>s                                           48 scenes
    a <size> <colour> <shape> <left of | above> a <size> <colour> <shape>  3,840 scenes

Things that are counted are small and in a fixed layout. Each caption has a second phrasing. The
grammar is kept so small that a small model learns it in minutes at 32 pixels: colours far apart,
shapes that differ in more than their corners, the smallest thing two patches of four pixels wide,
things never nearer than a pixel and a half, and in a relation always of two colours.

What is held out, by a rule that never changes: every scene with a (colour, shape) pair of
`HELD_OUT_PAIRS`. Each colour is trained in at least three shapes and each shape in at least five
colours, so a held-out scene asks for words that are known in a pair that is not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from limner.data.dataset import Refused, Row
from limner.data.images import DRAWN_SIDE, Size, png_bytes, refitted
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints, digest

GRID = 32
"""Sizes and places below are in units of 1/32 of the picture's side."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (30, 165, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 205, 30),
    "purple": (150, 50, 190),
    "black": (25, 25, 25),
}
SHAPES = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
SIZES = {"small": 8.0, "large": 12.5}
POSITIONS = {
    "in the center": ((16, 16),),
    "at the top left": ((9, 9),),
    "at the top right": ((23, 9),),
    "at the bottom left": ((9, 23),),
    "at the bottom right": ((23, 23),),
}
COUNTS = {"two": ((9, 16), (23, 16)), "three": ((9, 22), (23, 22), (16, 9))}
RELATIONS = {"left of": ((8, 16), (24, 16)), "above": ((16, 8), (16, 24))}
CONVERSE = {"left of": "right of", "above": "below"}
HELD_OUT_PAIRS = {("red", "triangle"), ("blue", "circle")}
PLACE_JITTER, SIZE_JITTER = 0.75, 0.4


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene: keys of COLOURS, SHAPES and SIZES."""

    colour: str
    shape: str
    size: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says. `layout` is a key of POSITIONS (one thing), of COUNTS (one thing, drawn
    several times, always small) or of RELATIONS (two things)."""

    things: tuple[Thing, ...]
    layout: str

    @property
    def drawn(self) -> tuple[Thing, ...]:
        """Each thing as often as it is in the picture."""
        return self.things * len(COUNTS[self.layout]) if self.layout in COUNTS else self.things

    @property
    def held_out(self) -> bool:
        return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in self.things)


class ShapesImages:
    """`num_samples` pictures of random scenes; a longer set begins with the shorter one."""

    name = "shapes"

    def __init__(self, num_samples: int = 4000, seed: int = 0) -> None:
        if num_samples < 1:
            raise LimnerError(f"shapes needs at least 1 picture, but num_samples is {num_samples}")
        rng = np.random.default_rng(seed)
        seen: Counter[Scene] = Counter()
        self.rows: list[Row] = []
        self.refused: list[Refused] = []
        for _ in range(num_samples):
            scene = sample_scene(rng)
            texts = captions(scene)
            # The same scene again is another picture: its number decides the jitter.
            key = f"{texts[0].replace(' ', '-')}-{seen[scene]}"
            self.rows.append(Row(key, texts, scene.held_out))
            seen[scene] += 1
        held_out = sum(row.held_out is True for row in self.rows)
        pairs = " or a ".join(sorted(" ".join(pair) for pair in HELD_OUT_PAIRS))
        self.description = (
            f"{num_samples} drawn pictures of {len(seen)} scenes, from a grammar of colours, "
            f"shapes, sizes, positions, counts and relations (seed {seed}). Held out: {held_out} "
            f"pictures, every one with a {pairs}; each colour and each shape is trained in others."
        )

    def load(self, row: Row, image_size: Size) -> np.ndarray:
        """The picture, uint8 [height, width, 3], the same at every call."""
        if not isinstance(image_size, int):
            return refitted(self.load(row, max(image_size)), image_size)
        return draw(parse(row.captions[0]), image_size, int(row.key.rsplit("-", 1)[1]))

    def path(self, row: Row) -> None:
        """Nothing that could be damaged."""

    def image(self, row: Row) -> bytes:
        """The bytes of a PNG of DRAWN_SIDE pixels."""
        return png_bytes(self.load(row, DRAWN_SIDE))

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The hash of what each picture is drawn from, uint8 [N, 16]."""
        hashes = (digest("shapes 1", row.captions[0], row.key) for row in rows)
        return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 16)


def captions(scene: Scene) -> tuple[str, str]:
    """The scene in two phrasings; the first is the main one."""
    first, last = scene.things[0], scene.things[-1]
    if scene.layout in POSITIONS:
        return f"a {first} {scene.layout}", f"{scene.layout}, a {first}"
    if scene.layout in COUNTS:
        shapes = SHAPES[first.shape]
        return (
            f"{scene.layout} {first.colour} {shapes}",
            f"{scene.layout} {shapes} that are {first.colour}",
        )
    return f"a {first} {scene.layout} a {last}", f"a {last} {CONVERSE[scene.layout]} a {first}"


def caption(scene: Scene) -> str:
    """The scene in words; `parse` is the inverse."""
    return captions(scene)[0]


def parse(text: str) -> Scene:
    """The scene that a caption (either phrasing, any case) describes. Raises LimnerError."""
    scene = _scenes_by_caption().get(" ".join(text.lower().split()))
    if scene is None:
        raise LimnerError(
            f'"{text}" is not a caption of the shapes data set; captions are like "a small red '
            'circle at the top left", "two blue squares", "a large green cross above a small '
            f'black triangle"; colours: {", ".join(COLOURS)}; shapes: {", ".join(SHAPES)}'
        )
    return scene


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene of the grammar, in a fixed order."""
    things = [Thing(*words) for words in product(COLOURS, SHAPES, SIZES)]
    small = [thing for thing in things if thing.size == "small"]
    pairs = [(a, b) for a, b in product(things, things) if a.colour != b.colour]
    return (
        *(Scene((thing,), position) for thing, position in product(things, POSITIONS)),
        *(Scene((thing,), count) for thing, count in product(small, COUNTS)),
        *(Scene(pair, relation) for pair, relation in product(pairs, RELATIONS)),
    )


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene: 40 % one thing in a place, 20 % counts, 40 % relations."""
    layouts = (POSITIONS, COUNTS, RELATIONS)[rng.choice(3, p=[0.4, 0.2, 0.4])]
    scenes = [scene for scene in all_scenes() if scene.layout in layouts]
    return scenes[rng.integers(len(scenes))]


def draw(scene: Scene, image_size: int, variation: int = 0) -> np.ndarray:
    """The scene on white, antialiased, uint8 [image_size, image_size, 3]. `variation` shifts each
    thing by up to PLACE_JITTER and changes its width by up to SIZE_JITTER (in GRID units)."""
    seed = hashlib.sha256(f"{caption(scene)}|{variation}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    oversampling = 8
    canvas = Image.new("RGB", (image_size * oversampling,) * 2, "white")
    scale = canvas.width / GRID
    for thing, centre in zip(scene.drawn, _centres(scene.layout), strict=True):
        x, y = np.array(centre) + rng.uniform(-PLACE_JITTER, PLACE_JITTER, 2)
        side = SIZES[thing.size] + rng.uniform(-SIZE_JITTER, SIZE_JITTER)
        box = [scale * (x - side / 2), scale * (y - side / 2)]
        box += [box[0] + scale * side, box[1] + scale * side]
        draw_shape(canvas, thing.shape, box, COLOURS[thing.colour])
    return np.array(canvas.reduce(oversampling))


def draw_shape(
    canvas: Image.Image, shape: str, box: list[float], fill: tuple[int, int, int] | int
) -> None:
    """Fills `shape` into `box` = [left, top, right, bottom], in pixels of the canvas."""
    left, top, right, bottom = box
    pen = ImageDraw.Draw(canvas)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)
    else:
        third_x, third_y = (right - left) / 3, (bottom - top) / 3
        pen.rectangle([left + third_x, top, right - third_x, bottom], fill=fill)
        pen.rectangle([left, top + third_y, right, bottom - third_y], fill=fill)


def _centres(layout: str) -> tuple[tuple[int, int], ...]:
    return {**POSITIONS, **COUNTS, **RELATIONS}[layout]


@cache
def _scenes_by_caption() -> dict[str, Scene]:
    return {text: scene for scene in all_scenes() for text in captions(scene)}
