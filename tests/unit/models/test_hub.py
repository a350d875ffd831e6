"""A pretrained part by local folder or Hub id, and one message when it cannot be had."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from recording_hub import point_client_at

from limner.errors import LimnerError
from limner.pretrained.hub import find_file, find_folder, weight_files

KEY = "vae.pretrained_model_name"
WAYS = ("HF_ENDPOINT=https://hf-mirror.com", "hf download", f"{KEY}=FOLDER", "null")


def part(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}', "utf-8")
    (folder / weights).write_bytes(b"weights")
    return folder


def message(name: str, key: str = KEY, subfolder: str | None = None) -> str:
    with pytest.raises(LimnerError) as error:
        find_folder(name, key, subfolder)
    said = str(error.value)
    assert said.startswith(f"{key}: {name!r}")
    return said


# Local folders


def test_a_local_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = part(tmp_path / "vae")
    assert find_folder(str(folder), KEY, "vae") == folder


@pytest.mark.parametrize("index", [True, False])
def test_of_a_whole_pipeline_the_part_is_taken(tmp_path: Path, index: bool) -> None:
    inner = part(tmp_path / "pipeline" / "vae")
    if index:
        (tmp_path / "pipeline" / "model_index.json").write_text("{}", "utf-8")
    assert find_folder(str(tmp_path / "pipeline"), KEY, "vae") == inner


def test_a_folder_that_is_no_part_says_what_it_lacks(tmp_path: Path) -> None:
    folder = part(tmp_path / "vae")
    (folder / "model.safetensors").unlink()
    assert "contains no weights (*.safetensors or *.bin)" in message(str(folder))
    (folder / "config.json").unlink()
    said = message(str(folder))
    assert "contains no config.json" in said
    assert all(way in said for way in WAYS)


@pytest.mark.parametrize("name", ["./vae", "/no/such/vae", "~/vae", "C:\\vae", "a/b/c", "vae/"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)  # a call would be a TypeError
    said = message(name)
    assert f"nothing exists at {Path(name).expanduser().absolute()}" in said
    assert all(way in said for way in WAYS)


def test_identity_covers_configuration_weights_and_tokenizer_and_one_format_of_them(
    tmp_path: Path,
) -> None:
    folder = part(tmp_path / "vae")
    for other in ("model.bin", "tokenizer.json", "merges.txt", "README.md", "model.msgpack"):
        (folder / other).write_text("x", "utf-8")
    found = [path.name for path in weight_files(folder)]
    assert found == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    (folder / "model.safetensors").unlink()
    assert "model.bin" in [path.name for path in weight_files(folder)]


# The Hub: its real client against a server on this machine

FILES = {
    "someone/vae": {"config.json": b"{}", "model.safetensors": b"good", "model.bin": b"old"},
    "someone/old": {"config.json": b"{}", "pytorch_model.bin": b"old", "tf_model.h5": b"no"},
    "someone/pipeline": {
        "model_index.json": b"{}",
        "unet/model.safetensors": b"large",
        "vae/config.json": b"{}",
        "vae/model.safetensors": b"good",
        "vae/model.fp16.safetensors": b"half",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": b"good",
        "tokenizer/vocab.json": b"{}",
    },
    "someone/network": {"README.md": b"#", "network-1.pth": b"good", "network-1.onnx": b"no"},
}
COMMIT = "0" * 40


class FakeHub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        path = self.path.partition("?")[0]
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        body, status, headers = b"{}", 200, dict[str, str]()
        if name == "someone/gated":
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif name not in FILES:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        elif "/tree/" in path:
            listed = [
                {"type": "file", "path": p, "size": len(b), "oid": f"{hash(b):x}"}
                for p, b in FILES[name].items()
            ]
            body = json.dumps(listed).encode()
        elif path.startswith("/api/"):
            siblings = [{"rfilename": p} for p in FILES[name]]
            body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        else:
            body = FILES[name][path.split(f"/resolve/{COMMIT}/")[1]]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(body)):x}"'}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    point_client_at(address, tmp_path / "hub", monkeypatch)
    yield address
    server.shutdown()
    server.server_close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_repository_is_downloaded_once_and_only_what_is_needed(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_folder("someone/vae", KEY, "vae")
    assert names(folder) == {"config.json", "model.safetensors"}
    assert names(find_folder("someone/old", KEY)) == {"config.json", "pytorch_model.bin"}
    point_client_at("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)  # nobody answers there
    assert find_folder("someone/vae", KEY, "vae") == folder


def test_of_a_pipeline_on_the_hub_only_the_part_is_downloaded(endpoint: str) -> None:
    folder = find_folder("someone/pipeline", KEY, "vae")
    assert folder.name == "vae"
    assert names(folder) == {"config.json", "model.safetensors"}
    assert not (folder.parent / "unet").exists()
    text = find_folder("someone/pipeline", KEY, "text_encoder")
    assert names(text) == {"config.json", "model.safetensors"}
    assert names(text.parent / "tokenizer") == {"vocab.json"}


def test_a_single_file_is_found_by_path_in_a_folder_or_on_the_hub(
    endpoint: str, tmp_path: Path
) -> None:
    patterns = ("network-*.pth", "network-*.safetensors")
    found = find_file("someone/network", KEY, patterns)
    assert found.read_bytes() == b"good"
    assert names(found.parent) == {"network-1.pth"}
    assert find_file(str(found), KEY, patterns) == found
    assert find_file(str(found.parent), KEY, patterns) == found
    with pytest.raises(LimnerError, match=f"{KEY}: .*contains no network"):
        find_file("someone/vae", KEY, patterns)
    with pytest.raises(LimnerError, match="there is no such repository"):
        find_file("someone/mistyped", KEY, patterns)
    for path in ("./no", "no.pth", str(tmp_path / "no")):
        with pytest.raises(LimnerError, match=f"{KEY}: .* neither a file nor a folder"):
            find_file(path, KEY, patterns)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("someone/gated", "it is gated: accept its terms at"),
        ("someone/mistyped", "there is no such repository, or it is private; check the spelling"),
        ("some one", "that is not a valid id"),
    ],
)
def test_why_the_hub_does_not_give_it(endpoint: str, name: str, why: str) -> None:
    said = message(name)
    assert why in said
    assert f"{endpoint}/{name}" in said
    assert str(Path(name).absolute()) in said
    assert all(way in said for way in WAYS)


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_client_at("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)
    said = message("someone/vae")
    assert "it cannot be reached, and it is not in the local cache" in said
    assert str(tmp_path / "hub") in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in message("someone/vae")
