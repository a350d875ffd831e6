"""Names of files and folders that operating systems create, such as .DS_Store; ignored."""

from __future__ import annotations

SYSTEM_FOLDERS = frozenset(
    {
        *("$recycle.bin", "recycler", "system volume information"),  # Windows
        *("__macosx", "lost+found", "thumbnails", ".ipynb_checkpoints"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology, QNAP
    }
)
"""Folders of operating systems, network drives and notebooks, in lower case. All whose name begins
with a dot (`.Trash-1000`, `.thumbnails`) are passed over besides."""
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})

LEFT_BY_ITSELF = SYSTEM_FILES | {".ds_store", ".localized", ".directory", ".gitkeep"}
"""Files that hold nothing of anybody's, and may go with the folder in which they lie."""


def is_left_by_itself(name: str) -> bool:
    """Whether a file is none that anybody would miss, unlike a `.git` or an `.env`."""
    return name.lower() in LEFT_BY_ITSELF or name.startswith("._")


def is_system_name(name: str) -> bool:
    """Whether a file or folder belongs to the system, and not to the data: hidden ones, too, such
    as the `._apple.jpg` that macOS puts beside apple.jpg."""
    lower = name.lower()
    return name.startswith(".") or lower in SYSTEM_FOLDERS or lower in SYSTEM_FILES


def is_system_path(path: str) -> bool:
    """The same of any part of a path with forward slashes."""
    return any(part not in (".", "..") and is_system_name(part) for part in path.split("/") if part)
