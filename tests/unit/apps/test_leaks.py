"""What `limner publish` would send holds nothing private, and is not sent where it does."""

import base64
import gzip
import html
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from made_up import made_up_checkpoint
from PIL import Image, PngImagePlugin
from recording_hub import TOKEN, Recorded
from safetensors.torch import save_file
from tar_files import pairs, tar_of
from tiny import TINY

from limner.apps.publishing.leaks import Private, find_leaks, private_of, refuse_leaks
from limner.apps.publishing.upload import Said, publish
from limner.checkpoint.single_file import WeightsFile
from limner.cli import main
from limner.config import load_config
from limner.errors import LimnerError

CLIENT = "Northwind GmbH"
PATH = f"/home/maria/{CLIENT}/Möbel & Co"
KEPT = [Private(PATH, "the path of data.dataset_path", True)]


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


# The whole, as somebody does it


@pytest.fixture
def tars_for_who_may() -> Iterator[str]:
    """Address of a server of x.tar for `user` with `secret` and a signature, with ranges."""
    data = tar_of(pairs(0, 12))
    allowed = base64.b64encode(b"user:secret").decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            may = self.headers.get("Authorization") == f"Basic {allowed}"
            if not may or self.path != "/x.tar?X-Amz-Signature=s":
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            begin, end = 0, len(data)
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin, end = int(first), int(last or len(data)) + 1
            part = data[begin:end]
            self.send_response(206 if wanted else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_run_on_a_signed_url_in_a_clients_folder_is_published_clean(
    tars_for_who_may: str,
    tmp_path: Path,
    quick_end: None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, kept = tmp_path / CLIENT / "run", tmp_path / "kept"
    url = f"http://user:secret@{tars_for_who_may}/x.tar?X-Amz-Signature=s"
    words = [word for word in TINY if not word.startswith(("data.", "training.trackers"))]
    words += [f"data.dataset_path='{url}'", "data.image_size=16", "training.trackers=tensorboard"]
    words += [f"training.output_dir='{run}'", f"cache.folder='{tmp_path / CLIENT / 'cache'}'"]
    assert main(["train", *words]) == 0
    few = ["evaluation.num_images=4", "evaluation.efficientnet=false"]
    assert main(["evaluate", str(run), "--device", "cpu", *few]) == 0
    told = capsys.readouterr()
    for secret in ("secret", "X-Amz-Signature"):
        assert secret not in told.out + told.err + caplog.text
        for name, content in everything(run):
            if not name.endswith("config.yaml"):  # by which the run goes on
                assert secret.encode() not in content, name
    assert b"X-Amz-Signature=s" in (run / "config.yaml").read_bytes()

    words = ["publish", str(run), "--repo", "me/chairs", "--page", "--output", str(kept)]
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr()
    found = dict(everything(kept))
    assert {"evaluation/evaluation.json", "evaluation/evaluation.html"} <= found.keys()
    found["what is shown"] = (told.out + told.err).replace(str(tmp_path), "").encode()
    for name, content in found.items():
        for private in (b"secret", b"X-Amz-Signature", b"Northwind", b"x.tar"):
            assert private not in content, name
    card = found["README.md"].decode()
    assert "trained from scratch with Limner on a private data set." in card
    assert "12 pictures with 12 captions from a private data set." in card
    assert main([*words, "--dry-run", "--data_name", "Chairs of ours"]) == 0
    card = (kept / "README.md").read_text("utf-8")
    assert "12 pictures with 12 captions from Chairs of ours." in card


def test_what_is_private_is_not_sent(
    hub: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that reaches the card by a way that nobody thought of."""
    made = made_up_checkpoint(tmp_path / CLIENT / "checkpoint")
    kept = tmp_path / "kept"
    said = Said(license=f"as in {made}/LICENSE", data_name=f"pictures of {CLIENT}")
    with pytest.raises(LimnerError) as error:
        publish(made, "me/x", said=said, output=kept)
    assert "nothing was published" in str(error.value)
    assert "README.md, line 5: the path of the model" in str(error.value)
    assert hub.requests == []
    assert not kept.exists()
    # A word that the publisher says is meant to be seen.
    said = Said(data_name=f"pictures of {CLIENT}")
    assert publish(made, "me/x", said=said, dry_run=True) is None
    monkeypatch.setenv("DEPLOY_SECRET", "correct horse")
    said = Said(data_name="correct horse")
    with pytest.raises(LimnerError, match=r"line \d+: the value of DEPLOY_SECRET") as error:
        publish(made, "me/x", said=said, dry_run=True)
    assert "correct horse" not in str(error.value)


def test_an_endpoint_with_a_password_is_not_shown(
    hub: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    made = made_up_checkpoint(tmp_path / "checkpoint")
    hub.refuse = 500
    monkeypatch.setattr(constants, "ENDPOINT", hub.address.replace("//", "//me:pass99word@"))
    with pytest.raises(LimnerError, match=rf"at {hub.address}") as error:
        publish(made, "me/x")
    assert "pass99word" not in str(error.value)


def test_what_parts_of_a_private_set_are_called_is_not_published(tmp_path: Path) -> None:
    made = made_up_checkpoint(
        tmp_path / "checkpoint",
        *("data.dataset_name=null", "data.dataset_split=northwind_redesign[:90%]"),
        *("data.dataset_config=northwind", "training.preview_prompts=[the Northwind lobby]"),
    )
    assert main(["export", str(made), "--output", str(tmp_path / "one.safetensors")]) == 0
    words = ["publish", str(made), "--repo", "me/x", "--dry-run", "--prompt", "a lobby"]
    assert main([*words, "--output", str(tmp_path / "kept")]) == 0
    for path in (tmp_path / "one.safetensors", *(tmp_path / "kept").rglob("*")):
        if path.is_file():
            assert b"northwind" not in path.read_bytes().lower(), path.name
    config = WeightsFile.open(tmp_path / "one.safetensors").config
    assert (config.data.dataset_split, config.training.preview_prompts) == ("train", None)

    made = made_up_checkpoint(
        tmp_path / "other", "data.dataset_name=me/set", "data.dataset_split=all"
    )
    assert main(["export", str(made), "--output", str(tmp_path / "two.safetensors")]) == 0
    config = WeightsFile.open(tmp_path / "two.safetensors").config
    assert (config.data.dataset_split, config.training.preview_prompts) == (
        "all",
        ("a red circle",),
    )


def test_an_exported_file_names_no_place(tmp_path: Path) -> None:
    made = made_up_checkpoint(
        tmp_path / CLIENT / "checkpoint",
        "data.dataset_name=null",
        f"data.dataset_path='{PATH}'",
        f"data.allowed_paths=['{PATH}']",
        f"training.output_dir='{tmp_path / CLIENT}'",
        f"training.run_name='{CLIENT}'",
        f"training.tracker_project='{CLIENT}'",
        f"evaluation.reference='{PATH}'",
    )
    for words in (["--output", "one.safetensors"], ["--output", "many", "--format", "diffusers"]):
        words[1] = str(tmp_path / words[1])
        assert main(["export", str(made), *words]) == 0
    places = private_of({"it": [PATH, str(made)]}, {})
    assert find_leaks(tmp_path / "many", places) == []
    (tmp_path / "one").mkdir()
    (tmp_path / "one.safetensors").rename(tmp_path / "one" / "one.safetensors")
    assert find_leaks(tmp_path / "one", places) == []
    assert WeightsFile.open(tmp_path / "one" / "one.safetensors").config.data.image_size == 16


# What the search finds


def png_with(**texts: str) -> bytes:
    written = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    for number, (key, value) in enumerate(texts.items()):
        info.add_itxt(key, value, zip=bool(number % 2))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(written, "PNG", pnginfo=info)
    return written.getvalue()


def jpeg_with(text: str) -> bytes:
    written = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = text  # ImageDescription
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(written, "JPEG", exif=exif)
    return written.getvalue()


def zip_with(name: str, content: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return written.getvalue()


def tar_with(content: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as tar:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return written.getvalue()


WAYS: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda text: f"a\nsee {text}\n".encode(),
    "JSON": lambda text: json.dumps({"a": text}).encode(),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"a": text})).encode(),
    "JSON, slashes escaped": lambda text: json.dumps(text).replace("/", r"\/").encode(),
    "HTML": lambda text: html.escape(text).encode(),
    "YAML that is folded": lambda text: b"a: " + text.replace(" ", "\n  ").encode(),
    "entities": lambda text: "".join(f"&#{ord(letter)};" for letter in text).encode(),
    "percent": lambda text: quote(text).encode(),
    "percent, slashes too": lambda text: quote(text, safe="").encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "binary": lambda text: b"\0\xff" + text.encode() + b"\0",
    "binary, UTF-16": lambda text: b"\0\xff\0" + text.encode("utf-16-le"),
    "PNG": lambda text: png_with(a=text),
    "PNG, packed": lambda text: png_with(a="b", c=text),
    "JPEG": lambda text: jpeg_with(quote(text)),
    "PNG in a page": lambda text: (
        b'<img src="data:image/png;base64,' + base64.b64encode(png_with(a=text)) + b'">'
    ),
    "ZIP": lambda text: zip_with("a.txt", text.encode()),
    "name in a ZIP": lambda text: zip_with(text.strip("/") and f"x{text}", b""),
    "gzip": lambda text: gzip.compress(text.encode()),
    "tar.gz": lambda text: tar_with(text.encode()),
    "ZIP in gzip": lambda text: gzip.compress(zip_with("a.txt", text.encode())),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_path_is_found_in_whatever_way_it_is_written(way: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(WAYS[way](PATH))
    assert {leak.file.partition(" (")[0] for leak in find_leaks(tmp_path, KEPT)} == {"file"}
    (tmp_path / "file").write_bytes(WAYS[way]("/home/maria/other"))
    assert find_leaks(tmp_path, KEPT) == []


def test_it_is_found_in_weights_and_their_header(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors", {"config": json.dumps(PATH)})
    (found,) = {leak.file for leak in find_leaks(tmp_path, KEPT)}
    assert found == "a.safetensors (metadata config)"
    hidden = np.frombuffer(PATH.encode().ljust(64), dtype=np.uint8).copy()
    save_file({"a": torch.from_numpy(hidden)}, tmp_path / "a.safetensors")
    assert [str(leak) for leak in find_leaks(tmp_path, KEPT)] == [
        f"a.safetensors: the path of data.dataset_path {PATH!r}"
    ]


def test_it_is_found_where_two_blocks_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.apps.publishing.leaks.AT_ONCE", 64)
    monkeypatch.setattr("limner.apps.publishing.leaks.WHOLE", 10)
    (tmp_path / "a.bin").write_bytes(b"x" * 50 + PATH.encode() + b"x" * 50)
    assert len(find_leaks(tmp_path, KEPT)) == 1


def test_words_are_looked_for_in_what_tells_of_the_run_alone(tmp_path: Path) -> None:
    private = private_of({"data.dataset_path": [f"/srv/{CLIENT}/outputs"]}, {})
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("northwind gmbh", "utf-8")
    (tmp_path / "README.md").write_text("outputs\n\nmade for NORTHWIND GMBH.", "utf-8")
    assert [str(leak) for leak in find_leaks(tmp_path, private)] == [
        f"README.md, line 3: a folder of data.dataset_path {CLIENT!r}"
    ]
    assert find_leaks(tmp_path, private, ["Made for NORTHWIND GMBH", "NORTHWIND GMBH"]) == []
    (tmp_path / "README.md").write_text("Northwind GmbHs, unNorthwind GmbH", "utf-8")
    assert find_leaks(tmp_path, private) == []
    (tmp_path / "README.md").write_text(f"/srv/{CLIENT}/outputs", "utf-8")
    assert find_leaks(tmp_path, private, [f"/srv/{CLIENT}/outputs"]), "a path is never meant"


def test_all_that_a_url_hides_is_private(tmp_path: Path) -> None:
    url = "simplecache::https://maria:p%40ss@shop.example/n/x.tar?X-Amz-Signature=5f3a9c77&e=1#frag"
    private = private_of({"data.dataset_path": [url]}, {})
    for shown in (
        "maria:p%40ss@",
        "p@ss",
        "5f3a9c77",
        "X-Amz-Signature=5f3a9c77&e=1",
        "shop.example",
    ):
        (tmp_path / "README.md").write_text(f"a\n{shown}", "utf-8")
        with pytest.raises(LimnerError, match=r"README\.md, line 2: .*data.dataset_path") as error:
            refuse_leaks(tmp_path, private)
        if shown != "shop.example":
            assert shown not in str(error.value)
    (tmp_path / "README.md").write_text("e is 1, and 5f3a", "utf-8")
    refuse_leaks(tmp_path, private)


def test_of_the_environment_secrets_are_private() -> None:
    environment = {
        "MY_TOKEN": TOKEN, "WANDB_API_KEY": "0123456789", "TOKENIZERS_PARALLELISM": "false",
        "HTTPS_PROXY": "http://me:pass99word@proxy:80", "HF_TOKEN_PATH": "/home/maria/token",
        "LANG": "C.UTF-8",
    }  # fmt: skip
    found = {one.text: one for one in private_of({}, environment) if one.secret}
    assert {TOKEN, "0123456789", "pass99word", "me:pass99word"} <= found.keys()
    assert found[TOKEN].anywhere
    environment = {"DB_PASSWORD": "sunshine"}
    (word,) = (one for one in private_of({}, environment) if one.text == "sunshine")
    assert not word.anywhere, "a vocabulary has it, too"
    assert not {"false", "/home/maria/token", "C.UTF-8"} & found.keys()
    home = str(Path.home())
    assert any(one.text.startswith(home) for one in private_of({}, {}))


def test_a_hub_id_and_what_is_ordinary_are_not_private(tmp_path: Path) -> None:
    places = {"vae.pretrained_model_name": ["someone/vae"], "data.dataset_path": ["./data", "data"]}
    (tmp_path / "README.md").write_text("someone/vae, data, outputs, run, model", "utf-8")
    assert find_leaks(tmp_path, private_of(places, {})) == []


def test_the_default_configuration_is_no_leak(tmp_path: Path) -> None:
    from limner.redaction import named_places

    (tmp_path / "a.json").write_text(json.dumps(load_config(None).model_dump(mode="json")), "utf-8")
    places = {key: [place] for key, place in named_places(load_config(None).model_dump())}
    assert find_leaks(tmp_path, private_of(places, {})) == []


def test_the_vocabulary_and_the_weights_of_a_page_are_no_words(tmp_path: Path) -> None:
    places = {"data.dataset_path": ["/srv/clients/gallinule-portraits"]}
    page = tmp_path / "index.html"
    page.write_text('{"vocabulary": {"gallinule": 1}} AAgallinule+gallinule+AA', "utf-8")
    names = [Private("gallinule", "a folder of data.dataset_path", False), *private_of(places, {})]
    assert [leak.file for leak in find_leaks(tmp_path, names)] == ["index.html"]
    assert find_leaks(tmp_path, names, said={"index.html": "a word, credits"}) == []
    (leak,) = find_leaks(tmp_path, names, said={"index.html": "drawn for\ngallinule"})
    assert str(leak) == "index.html, line 2: a folder of data.dataset_path 'gallinule'"
    page.write_text("AA /srv/clients/gallinule-portraits AA", "utf-8")
    (leak,) = find_leaks(tmp_path, names, said={"index.html": ""})
    assert leak.private.what == "the path of data.dataset_path"
