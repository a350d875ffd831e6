"""A Hub on loopback that has one data set, for the real client."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0" * 40


def files_of(folder: Path) -> dict[str, bytes]:
    """Path within the folder -> content."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@contextmanager
def dataset_hub(
    name: str, files: Mapping[str, bytes], asked: list[int] | None = None
) -> Iterator[str]:
    """Serve the files as the data set `name` until the block ends; the address.

    `asked` collects how many bytes each answer had.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.give(send=False)

        def do_GET(self) -> None:
            self.give(send=True)

        def give(self, send: bool) -> None:
            path = unquote(urlsplit(self.path).path).removeprefix("/api").removeprefix("/datasets/")
            missing = {"X-Error-Code": "EntryNotFound"}
            if not path.startswith(name):
                self.answer(b"{}", send, 404, {"X-Error-Code": "RepoNotFound"})
            elif "/resolve/" in path:
                found = files.get(path.split("/resolve/")[1].partition("/")[2])
                if found is None:
                    self.answer(b"", send, 404, missing)
                else:
                    tag = f'"{hashlib.sha1(found).hexdigest()}"'
                    headers = {"ETag": tag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                    status = 200
                    if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
                        first, last = int(wanted[1]), int(wanted[2] or len(found) - 1)
                        headers["Content-Range"] = f"bytes {first}-{last}/{len(found)}"
                        status, found = 206, found[first : last + 1]
                    if send and asked is not None:
                        asked.append(len(found))
                    self.answer(found, send, status, headers)
            elif "/tree/" in path:
                query = parse_qs(urlsplit(self.path).query)
                whole = query.get("recursive", ["false"])[0].lower() in ("1", "true")
                listed = self.listed(path.split("/tree/")[1].partition("/")[2], whole)
                status, headers = (200, {}) if listed else (404, missing)
                self.answer(json.dumps(listed).encode(), send, status, headers)
            else:
                siblings = [{"rfilename": file} for file in files]
                about = {"id": name, "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(about).encode(), send)

        def listed(self, under: str, whole: bool) -> list[dict[str, Any]]:
            """What is in a folder; its folders as `whole` says, or without what is in them."""
            found: dict[str, dict[str, Any]] = {}
            start = f"{under}/" if under else ""
            for path, data in files.items():
                if path.startswith(start):
                    first, deeper, _ = path.removeprefix(start).partition("/")
                    if whole:
                        first, deeper = path.removeprefix(start), ""
                    here = {"path": start + first, "oid": hashlib.sha1(data).hexdigest()}
                    size = {} if deeper else {"size": len(data)}
                    found[first] = {"type": "directory" if deeper else "file", **here, **size}
            return list(found.values())

        def answer(
            self,
            body: bytes,
            send: bool,
            status: int = 200,
            headers: Mapping[str, str] | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
