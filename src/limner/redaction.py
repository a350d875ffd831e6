"""What must not be shared is taken out of text: passwords and signatures in URLs, and folders.

A URL loses user, password, query, and fragment wherever it is shown. Where the text may leave the
machine (a report, a tracker, an export), a path of this machine loses its folders, too: they name
people, projects, and clients.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

PLACES = {
    "data": ("dataset_path", "allowed_paths"),
    "training": ("output_dir", "init_from", "resume"),
    "vae": ("pretrained_model_name",),
    "text_encoder": ("pretrained_model_name",),
    "cache": ("folder",),
    "evaluation": ("reference", "inception", "dinov2", "clip"),
}
"""Keys of the configuration that say where something is."""
NEVER_ON_THE_HUB = frozenset(("dataset_path", "allowed_paths", "output_dir", "folder"))
"""Those of them whose owner/name is a folder."""
HIDDEN = "***"

_REMOTE = r"(?:https?|ftps?|sftp|ssh|webdavs?|s3a?|gcs|gs|abfss?|adl|az|oss|hf)"
_URL = re.compile(
    # A scheme is short, which keeps the search linear in long runs of letters.
    # A URL that was taken for a path has one slash left, or on Windows a backslash.
    rf"(?:[A-Za-z][A-Za-z0-9+.-]{{0,30}}:(?:\\?/){{2}}|\b{_REMOTE}:[\\/]{{1,2}})[^\s\"'<>]*",
    re.IGNORECASE,
)
_ENCODED_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}%3A%2F%2F[^\s\"'<>]*", re.IGNORECASE)
_END = re.compile(r"[)\]}.,;:!?]*$")  # of the sentence that the URL stands in
_PARAMETER = re.compile(
    r"\b((?:x-amz|x-goog)-[a-z-]+|awsaccesskeyid|signature|sig|access_token)=[^\s&\"'<>]+",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"\b(Bearer|Basic) [A-Za-z0-9+/=._~-]{8,}")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_KEY = re.compile(r"(--)?[\w.-]+")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")

_NOT = r"\s/\\\"'<>|:;,()"
_NAME = rf"[^{_NOT}]+"
_MARK = r"'(?=\w)|,(?=[^\s/\\])|\([^()/\\\n]*\)"  # O'Neil, (a client)
_FIRST = rf"(?:[^{_NOT}]|{_MARK})+"
_WORD = rf"(?:-|(?:[^{_NOT}=-]|{_MARK})(?:[^{_NOT}=]|{_MARK})*)"  # no flag of a command
_SPACE = "(?: |, (?=[A-Z\u00c0-\u00de]))"  # Miller, Smith
# Names with spaces and such, as far as a separator follows.
_FOLDER = rf"{_FIRST}(?:{_SPACE}{_WORD}){{0,3}}"
_POSIX_PATH = re.compile(rf"(?<![\w./<~)\]}}*%\\-])~?//?(?:{_FOLDER}/)*({_NAME})/?")
_WINDOWS_PATH = re.compile(
    rf"(?<!\w)(?:[A-Za-z]:[\\/]+|\\\\+)(?:{_FOLDER}[\\/]+)*({_NAME})(?:[\\/]+(?=\s|$|[\"'<>]))?"
)


def redact_urls(text: str) -> str:
    """The text with each URL cut to scheme, host, and path, and without tokens. Paths stay."""
    if ":/" in text or ":\\" in text:
        text = _URL.sub(_bare, text)
    if "%" in text:
        text = _ENCODED_URL.sub(lambda found: _URL.sub(_bare, unquote(found[0])), text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1={HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, _AUTHORIZATION.sub(rf"\1 {HIDDEN}", text))


def redact(text: str, places: Iterable[str] = ()) -> str:
    """The text as it may be shared: URLs as in `redact_urls`, and of each absolute path of a
    machine the last name alone.

    Args:
        places: paths, relative ones and ones with spaces among them, that are known to be in it
            (`places_of` a configuration).
    """
    text = redact_urls(text)
    for place in sorted(_spellings(places), key=len, reverse=True):
        if place in text:
            bounded = rf"(?<![\w./\\-]){re.escape(place)}(?=$|[^\w-])"
            text = re.sub(bounded, lambda _, place=place: shown_place(place, False), text)  # type: ignore[misc]
    urls: list[str] = []

    def put_aside(found: re.Match[str]) -> str:
        if found[0].lower().startswith("file:"):
            return shown_place(found[0])
        urls.append(found[0])
        return f"\0{len(urls) - 1}\0"

    if "/" in text or "\\" in text:
        text = _URL.sub(put_aside, text)
        text = _POSIX_PATH.sub(r"\1", _WINDOWS_PATH.sub(r"\1", text))
        text = re.sub("\0(\\d+)\0", lambda found: urls[int(found[1])], text)
    return text


def redacted(tree: Any, places: Iterable[str] = (), but: Collection[str] = ()) -> Any:
    """Nested dicts and lists with every text in them as `redact` has it.

    Args:
        but: keys whose values stay as they are, such as captions.
    """
    places = tuple(places)
    if isinstance(tree, dict):
        return {
            key: value if key in but else redacted(value, places, but)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return type(tree)(redacted(value, places, but) for value in tree)
    return redact(tree, places) if isinstance(tree, str) else tree


def shown_place(place: str, on_the_hub: bool = True) -> str:
    """A path, URL, or Hub id as it may be shared: a Hub id as it is, of a path the last name.

    Args:
        on_the_hub: whether it may be a Hub id at all.
    """
    if _URL.match(place):
        bare = redact_urls(place)
        if not bare.lower().startswith("file:"):
            return bare
        place = bare
    elif on_the_hub and is_hub_id(place):
        return place
    return place.replace("\\", "/").rstrip("/").rpartition("/")[2] or place


def shown_command(words: Iterable[str]) -> list[str]:
    """What was typed, each word as it may be shared: `key=VALUE` and `--flag=VALUE`, too."""

    def shown(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            key, equals, value = "", "", word
        is_place = "/" in value or "\\" in value
        return f"{key}{equals}{shown_place(value) if is_place else value}"

    return [shown(word) for word in words]


def is_hub_id(place: str) -> bool:
    """Whether it is read as owner/name on the Hub, and not as a path (see `find_model`)."""
    found = _HUB_ID.fullmatch(place)
    return bool(found) and not os.path.exists(place) and not os.path.isdir(place.partition("/")[0])


def as_path(place: str) -> str:
    """`./owner/name` for a path of two names that is there, so that it is read as a path also where
    it is not there: from another folder, on another machine, or after it was deleted."""
    return f"./{place}" if _HUB_ID.fullmatch(place) and os.path.exists(place) else place


def is_same_place(one: str | None, other: str | None) -> bool:
    """Whether two settings name one place: `owner/name` and `./owner/name` do."""
    return one == other or (
        one is not None and other is not None and os.path.normpath(one) == os.path.normpath(other)
    )


def places_of(settings: Mapping[str, Any]) -> list[str]:
    """The paths, URLs, and names that a configuration (sections of keys) says things are at, and
    the folders of files that hold a data set."""
    named = named_places(settings)
    tables = (place for key, place in named if key == "data.dataset_path" and "://" not in place)
    folders = [os.path.dirname(_absolute(table)) for table in tables if os.path.isfile(table)]
    return [*(place for _, place in named), *folders]


def named_places(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same, each with its key, `section.key`."""
    found: list[tuple[str, str]] = []
    for section, keys in PLACES.items():
        values = settings.get(section)
        for key in keys if isinstance(values, Mapping) else ():
            value = values.get(key)  # type: ignore[union-attr]
            several = value if isinstance(value, list | tuple) else [value]
            local = key in NEVER_ON_THE_HUB
            names = [f"./{one}" if local and is_hub_id(str(one)) else str(one) for one in several]
            found += [(f"{section}.{key}", n) for one, n in zip(several, names, strict=True) if one]
    return found


def redacted_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration (sections of keys) as it may be shared."""
    places = places_of(settings)

    def shown(section: str, key: str, value: Any) -> Any:
        if key not in PLACES.get(section, ()):
            return redacted(value, places)
        if isinstance(value, list | tuple):
            return type(value)(shown(section, key, one) for one in value)
        return shown_place(value, key not in NEVER_ON_THE_HUB) if isinstance(value, str) else value

    return {
        section: {key: shown(section, key, value) for key, value in values.items()}
        if isinstance(values, Mapping)
        else redacted(values, places)
        for section, values in settings.items()
    }


# ---- details -----------------------------------------------------------------------------------


def _bare(found: re.Match[str]) -> str:
    url = found[0]
    scheme, slashes, rest = re.split(r"(:(?:(?:\\?/){2}|[\\/]{1,2}))", url, maxsplit=1)
    end = _END.search(rest)
    punctuation = end[0] if end else ""
    host = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
    port = host.rpartition(":")[2]
    if "@" in host:
        rest = rest[host.rindex("@") + 1 :]
    elif "@" in rest and ":" in host and not port.isdigit() and not host.startswith("["):
        rest = rest[rest.rindex("@") + 1 :]  # the password holds a slash or such
    bare = re.split(r"[?#]", rest, maxsplit=1)[0]
    if len(bare) < len(rest):
        bare += punctuation
    return f"{scheme}{slashes}{bare}"


def _spellings(places: Iterable[str]) -> set[str]:
    """Each path as it is, made absolute, and with its links followed, as errors of the system name
    it; words alone, which texts hold by chance, are none."""
    found: set[str] = set()
    for place in places:
        if _URL.match(place) or is_hub_id(place):
            continue
        for spelled in (place, os.path.normpath(place), _absolute(place), _real(place)):
            spelled = spelled.rstrip("/\\")
            if "/" in spelled or "\\" in spelled:
                found |= {spelled, spelled.replace("\\", "/")}
    return found


@functools.lru_cache(maxsize=1024)
def _absolute(place: str) -> str:
    return os.path.abspath(os.path.expanduser(place))


@functools.lru_cache(maxsize=1024)
def _real(place: str) -> str:
    try:
        return os.path.realpath(os.path.expanduser(place))
    except (OSError, ValueError):  # a circle of links, or a NUL
        return place
