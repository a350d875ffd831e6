"""A Hub on loopback that keeps what is uploaded and gives it out again, for the real client."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0" * 40
REVISIONS = ("main", "v1", COMMIT)
TOKEN = "hf_" + "averysecrettoken" * 2
LARGE = 100_000
"""Files from so many bytes on go the way of large files."""


@dataclass
class Recorded:
    """What arrived."""

    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> path -> content; of a Space "spaces/owner/name"."""
    private: set[str] = field(default_factory=set)
    """The repositories that are private."""
    sdk: dict[str, str] = field(default_factory=dict)
    """Of a Space."""
    sent: list[str] = field(default_factory=list)
    """The paths of all commits, "repository: path", one after the other."""
    messages: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their hash, before the commit that names them."""
    tokens: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    """Every request line."""
    refuse: int | None = None
    """A status to answer everything with."""
    refuse_commits: str | None = None
    """The repository of which commits are refused."""


@contextmanager
def recording_hub(user: str = "someone") -> Iterator[Recorded]:
    """Serve until the block ends."""
    recorded = Recorded()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.give(send=False)

        def do_GET(self) -> None:
            self.give(send=True)

        def do_PUT(self) -> None:
            body = self.body()
            recorded.objects[hashlib.sha256(body).hexdigest()] = body
            self.answer(b"{}")

        def do_POST(self) -> None:
            self.note()
            body = self.body()
            refused = recorded.refuse_commits
            if refused and "/commit/" in self.path and f"/{refused}/" in self.path:
                self.answer(b'{"error": "refused"}', 500)
                return
            if recorded.refuse:
                self.answer(b'{"error": "refused"}', recorded.refuse)
                return
            self.answer(json.dumps(self.take(urlsplit(self.path).path, body)).encode())

        def take(self, path: str, body: bytes) -> Any:
            if path == "/api/repos/create":
                asked = json.loads(body)
                recorded.created.append(asked)
                name = f"{asked.get('organization') or user}/{asked['name']}"
                if asked.get("type") == "space":
                    name = f"spaces/{name}"
                if name not in recorded.files:
                    recorded.sdk[name] = asked.get("sdk")
                if name not in recorded.files and asked.get("visibility") == "private":
                    recorded.private.add(name)
                recorded.files.setdefault(name, {})
                return {"url": f"{recorded.address}/{name}", "name": name, "id": name}
            if path == "/api/validate-yaml":
                return {"errors": [], "warnings": []}
            if path.endswith("/info/lfs/objects/batch"):
                return {"transfer": "basic", "objects": [
                    {**o, "actions": {"upload": {"href": f"{recorded.address}/lfs/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]}  # fmt: skip
            repo = path.removeprefix("/api/").removeprefix("models/").rsplit("/", 2)[0]
            if "/preupload/" in path:
                return {"files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]}  # fmt: skip
            assert "/commit/" in path, path
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header":
                    recorded.messages.append(value["summary"])
                elif entry["key"] == "file":
                    recorded.sent.append(f"{repo}: {value['path']}")
                    recorded.files[repo][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    recorded.sent.append(f"{repo}: {value['path']}")
                    recorded.files[repo][value["path"]] = recorded.objects[value["oid"]]
            url = f"{recorded.address}/{repo}/commit/{COMMIT}"
            return {"commitUrl": url, "commitOid": COMMIT, "hookOutput": "", "success": True}

        def give(self, send: bool) -> None:
            self.note()
            path = unquote(urlsplit(self.path).path)
            if path == "/api/whoami-v2":
                self.answer(json.dumps({"name": user, "type": "user"}).encode(), send=send)
                return
            inside = path.removeprefix("/api").removeprefix("/models").strip("/").split("/")
            name = "/".join(inside[: 3 if inside[0] == "spaces" else 2])
            files = recorded.files.get(name)
            if files is None or recorded.refuse:
                error = {"X-Error-Code": "RepoNotFound"}
                self.answer(b"{}", recorded.refuse or 404, error, send)
            elif "/revision/" in path and path.split("/revision/")[1] not in REVISIONS:
                self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"}, send)
            elif "/resolve/" in path:
                found = files.get(path.split("/resolve/")[1].partition("/")[2])
                if found is None:
                    self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"}, send)
                    return
                tag = {"ETag": f'"{hashlib.sha256(found).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self.answer(found, headers=tag, send=send)
            elif "/tree/" in path:
                listed = [
                    {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for p, b in files.items()
                ]
                self.answer(json.dumps(listed).encode(), send=send)
            else:
                siblings = [{"rfilename": p} for p in files]
                info = {"id": name, "sha": COMMIT, "siblings": siblings}
                info |= {"private": name in recorded.private, "sdk": recorded.sdk.get(name)}
                self.answer(json.dumps(info).encode(), send=send)

        def note(self) -> None:
            recorded.requests.append(self.requestline)
            scheme, _, token = self.headers.get("authorization", "").partition(" ")
            if scheme == "Bearer":
                recorded.tokens.add(token)

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") == "chunked":
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)
            return self.rfile.read(int(self.headers.get("content-length") or 0))

        def answer(
            self,
            body: bytes,
            status: int = 200,
            headers: dict[str, str] | None = None,
            send: bool = True,
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
    recorded.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield recorded
    finally:
        server.shutdown()
        server.server_close()


def point_client_at(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HOME, and HF_HUB_DISABLE_XET do, which the client reads when it is
    imported."""
    from huggingface_hub import constants, file_download, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert file_download.constants is constants
