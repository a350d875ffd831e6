"""Names of files and folders that operating systems create, such as .DS_Store; ignored."""

from __future__ import annotations

SYSTEM_FOLDERS = frozenset(
    {
        *("$recycle.bin", "recycler", "system volume information"),  # Windows
        *("__macosx", "lost+found", "thumbnails", ".ipynb_checkpoints"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology, QNAP
    }
)
"""Folders of operating systems, network drives and notebooks, in lower case. Names that begin with
a dot (`.Trash-1000`, `.thumbnails`) are also ignored."""
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})

LEFT_BY_ITSELF = SYSTEM_FILES | {".ds_store", ".localized", ".directory", ".gitkeep"}
"""Files without user data, which may be deleted with their folder."""


def is_left_by_itself(name: str) -> bool:
    """Whether nobody would miss this file, unlike a `.git` or an `.env`."""
    return name.lower() in LEFT_BY_ITSELF or name.startswith("._")


def is_system_name(name: str) -> bool:
    """Whether a file or folder belongs to the system, not to the data. This includes hidden ones,
    such as the `._apple.jpg` that macOS puts beside apple.jpg."""
    lower = name.lower()
    return name.startswith(".") or lower in SYSTEM_FOLDERS or lower in SYSTEM_FILES


def is_system_path(path: str) -> bool:
    """The same of any part of a path with forward slashes."""
    return any(part not in (".", "..") and is_system_name(part) for part in path.split("/") if part)
