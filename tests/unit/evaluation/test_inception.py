"""Inception-v3 as FID uses it: against a second writing of the same graph, from a table.

The weights are random, in the standard file's layout, and made from the table, so that neither the
shapes nor the strides, paddings, and poolings are those of the code under test by construction.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limner.errors import LimnerError
from limner.evaluation.networks import inception, networks
from limner.evaluation.networks.networks import Inception, full_float32

KEY = "the Inception file"
# Each line: name, input, channels out, kernel (high x wide), and "valid" or "stride 2" where it is
# not of stride 1 with the size kept. An input is "x", what the block was given; "mean" or "max" of
# it around each place; another line's name; or "pool(name)", the maximum at every second place.
# The last line in brackets is what is joined to the block's output.
STEM = """
Conv2d_1a_3x3 x 32 3x3 stride 2
Conv2d_2a_3x3 Conv2d_1a_3x3 32 3x3 valid
Conv2d_2b_3x3 Conv2d_2a_3x3 64 3x3
Conv2d_3b_1x1 pool(Conv2d_2b_3x3) 80 1x1
Conv2d_4a_3x3 Conv2d_3b_1x1 192 3x3 valid
[pool(Conv2d_4a_3x3)]
"""
A = """
branch1x1 x 64 1x1
branch5x5_1 x 48 1x1
branch5x5_2 branch5x5_1 64 5x5
branch3x3dbl_1 x 64 1x1
branch3x3dbl_2 branch3x3dbl_1 96 3x3
branch3x3dbl_3 branch3x3dbl_2 96 3x3
branch_pool mean {0} 1x1
[branch1x1 branch5x5_2 branch3x3dbl_3 branch_pool]
"""
B = """
branch3x3 x 384 3x3 stride 2
branch3x3dbl_1 x 64 1x1
branch3x3dbl_2 branch3x3dbl_1 96 3x3
branch3x3dbl_3 branch3x3dbl_2 96 3x3 stride 2
[branch3x3 branch3x3dbl_3 pool(x)]
"""
C = """
branch1x1 x 192 1x1
branch7x7_1 x {0} 1x1
branch7x7_2 branch7x7_1 {0} 1x7
branch7x7_3 branch7x7_2 192 7x1
branch7x7dbl_1 x {0} 1x1
branch7x7dbl_2 branch7x7dbl_1 {0} 7x1
branch7x7dbl_3 branch7x7dbl_2 {0} 1x7
branch7x7dbl_4 branch7x7dbl_3 {0} 7x1
branch7x7dbl_5 branch7x7dbl_4 192 1x7
branch_pool mean 192 1x1
[branch1x1 branch7x7_3 branch7x7dbl_5 branch_pool]
"""
D = """
branch3x3_1 x 192 1x1
branch3x3_2 branch3x3_1 320 3x3 stride 2
branch7x7x3_1 x 192 1x1
branch7x7x3_2 branch7x7x3_1 192 1x7
branch7x7x3_3 branch7x7x3_2 192 7x1
branch7x7x3_4 branch7x7x3_3 192 3x3 stride 2
[branch3x3_2 branch7x7x3_4 pool(x)]
"""
E = """
branch1x1 x 320 1x1
branch3x3_1 x 384 1x1
branch3x3_2a branch3x3_1 384 1x3
branch3x3_2b branch3x3_1 384 3x1
branch3x3dbl_1 x 448 1x1
branch3x3dbl_2 branch3x3dbl_1 384 3x3
branch3x3dbl_3a branch3x3dbl_2 384 1x3
branch3x3dbl_3b branch3x3dbl_2 384 3x1
branch_pool {0} 192 1x1
[branch1x1 branch3x3_2a branch3x3_2b branch3x3dbl_3a branch3x3dbl_3b branch_pool]
"""
BLOCKS = {
    "": STEM,
    "Mixed_5b.": A.format(32),
    "Mixed_5c.": A.format(64),
    "Mixed_5d.": A.format(64),
    "Mixed_6a.": B,
    "Mixed_6b.": C.format(128),
    "Mixed_6c.": C.format(160),
    "Mixed_6d.": C.format(160),
    "Mixed_6e.": C.format(192),
    "Mixed_7a.": D,
    "Mixed_7b.": E.format("mean"),
    "Mixed_7c.": E.format("max"),
}
LINE = re.compile(r"(\S+) (\S+) (\d+) (\d)x(\d)(?: (valid|stride 2))?")


def walk(x: Tensor, weights: dict[str, Tensor], make: bool = False) -> Tensor:
    """The graph by its table; `make` fills `weights` with random ones as it goes."""
    for prefix, block in BLOCKS.items():
        known = {"x": x}

        def value(name: str, known: dict[str, Tensor] = known) -> Tensor:
            if name == "mean":
                ones = torch.ones_like(known["x"][:1, :1])
                counted = 9 * F.avg_pool2d(ones, 3, 1, 1)
                return 9 * F.avg_pool2d(known["x"], 3, 1, 1) / counted
            if name == "max":
                return F.max_pool2d(F.pad(known["x"], (1, 1, 1, 1), value=-torch.inf), 3, 1)
            if name.startswith("pool("):
                return F.max_pool2d(known[name[5:-1]], 3, 2)
            return known[name]

        *lines, last = block.strip().splitlines()
        for line in lines:
            match = LINE.fullmatch(line)
            assert match, line
            name, source, out, height, width, how = match.groups()
            given, size = value(source), (int(height), int(width))
            at = prefix + name
            if make:
                new_convolution(weights, at, given.shape[1], int(out), size)
            y = F.conv2d(
                given,
                weights[f"{at}.conv.weight"],
                stride=2 if how == "stride 2" else 1,
                padding=(0, 0) if how else ((size[0] - 1) // 2, (size[1] - 1) // 2),
            )
            norm = [weights[f"{at}.bn.{part}"].view(-1, 1, 1)
                    for part in ("running_mean", "running_var", "weight", "bias")]  # fmt: skip
            y = (y - norm[0]) / (norm[1] + 0.001).sqrt() * norm[2] + norm[3]
            known[name] = y.clamp(min=0)
        x = torch.cat([value(name) for name in last.strip("[]").split()], dim=1)
    if make:
        weights["fc.weight"] = 0.05 * random(1008, x.shape[1])
        weights["fc.bias"] = random(1008)
    return x.flatten(2).mean(dim=2)


GENERATOR = torch.Generator()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def new_convolution(
    weights: dict[str, Tensor], at: str, channels: int, out: int, size: tuple[int, int]
) -> None:
    """Random, of a size at which activations neither die nor grow, so that pictures differ."""
    fan_in = channels * size[0] * size[1]
    weights[f"{at}.conv.weight"] = random(out, channels, *size) * (2 / fan_in) ** 0.5
    weights[f"{at}.bn.weight"] = 1 + 0.2 * random(out)
    weights[f"{at}.bn.bias"] = 0.2 * random(out)
    weights[f"{at}.bn.running_mean"] = 0.2 * random(out)
    weights[f"{at}.bn.running_var"] = torch.rand(out, generator=GENERATOR) + 0.5
    weights[f"{at}.bn.num_batches_tracked"] = torch.tensor(1)


def drawn(count: int, side: int = 48) -> Tensor:
    """Smooth pictures that differ from one another, uint8 [N, S, S, 3]."""
    place = torch.linspace(0, 6, side)
    waves = [
        torch.stack(
            [
                torch.sin((k + 1) * place[:, None] + c) * torch.cos((k + c) * place)
                for c in range(3)
            ],
            dim=-1,
        )
        for k in range(count)
    ]
    return (127.5 + 127 * torch.stack(waves)).to(torch.uint8)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    GENERATOR.manual_seed(0)
    made: dict[str, Tensor] = {}
    walk(torch.zeros(1, 3, 299, 299), made, make=True)
    return made


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random-inception.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def network(file: Path) -> Inception:
    return Inception(file, KEY)


def test_the_layout_is_that_of_the_standard_file(weights: dict[str, Tensor]) -> None:
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    assert (
        len(floats) == 94 * 5 + 2
    )  # 94 convolutions, each with its normalisation, and the classes
    # Counted in a network built from torchvision's and pytorch-fid's parts.
    assert sum(value.numel() for value in floats.values()) == 23_885_392
    ours = inception.InceptionV3().state_dict()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in weights.items()}


def test_features_and_logits_are_those_of_the_table(
    network: Inception, weights: dict[str, Tensor]
) -> None:
    images = drawn(3)
    features = network.features(images)
    assert features.shape == (3, 2048)
    assert features.dtype == torch.float32
    with torch.no_grad():
        expected = walk(inception.prepare(images), weights)
    assert expected.std(dim=0).mean() > 0.02  # the pictures are not all alike to it
    assert torch.allclose(features, expected, atol=1e-4, rtol=1e-4)
    logits = network.logits(features)
    assert torch.allclose(logits, expected @ weights["fc.weight"].T, atol=1e-3, rtol=1e-4)


def test_pictures_are_resized_as_tensorflow_1_does() -> None:
    line = torch.tensor([0.0, 100.0]).expand(1, 1, 2, 2)
    # Doubled: place 1 lies half way, and the last one beyond the picture repeats the border.
    assert inception.resize_as_tensorflow(line, 4)[0, 0, 0].tolist() == [0, 50, 100, 100]
    # Halved: every second pixel as it is, and no mean of neighbours.
    steps = torch.arange(4.0).expand(1, 1, 4, 4)
    assert inception.resize_as_tensorflow(steps, 2)[0, 0, 0].tolist() == [0, 2]

    x = np.random.default_rng(0).uniform(0, 255, (5, 7))
    found = inception.resize_as_tensorflow(torch.from_numpy(x).float()[None, None], 11)[0, 0]
    for i in range(11):
        for j in range(11):
            y0, x0 = i * 5 / 11, j * 7 / 11
            top, left = int(y0), int(x0)
            down, right = min(top + 1, 4), min(left + 1, 6)
            dy, dx = y0 - top, x0 - left
            above = x[top, left] * (1 - dx) + x[top, right] * dx
            below = x[down, left] * (1 - dx) + x[down, right] * dx
            assert float(found[i, j]) == pytest.approx(above * (1 - dy) + below * dy, abs=1e-3)
    black, white = torch.zeros(1, 8, 8, 3), torch.full((1, 8, 8, 3), 255)
    assert inception.prepare(black.to(torch.uint8)).unique().tolist() == [-1]
    assert inception.prepare(white.to(torch.uint8)).unique().tolist() == [127 / 128]


def test_a_picture_has_the_same_features_in_any_batch(network: Inception) -> None:
    images = drawn(3)
    together = network.features(images)
    alone = torch.cat([network.features(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-4)
    assert network.features(images[:0]).shape == (0, 2048)


def test_memory_that_runs_out_is_no_end(
    network: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, sizes = drawn(4), []
    expected = network.features(images)
    compute = network._compute

    def within_memory(prepared: Tensor) -> Tensor:
        sizes.append(len(prepared))
        if len(prepared) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return compute(prepared)

    monkeypatch.setattr(network, "_compute", within_memory)
    assert torch.allclose(network.features(images, batch_size=4), expected, atol=1e-4)
    assert sizes == [4, 2, 2]


def test_only_the_standard_weights_make_a_fid(
    file: Path, network: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_of_file = networks.file_sha256(file)
    assert network.sha256 == hash_of_file
    assert not network.verified
    short = hash_of_file[:12]
    unverified = f"Frechet distance (Inception-v3) (unverified weights {short})"
    assert network.label("Frechet distance") == unverified
    assert "FID" not in network.label("Frechet distance")
    assert "KID" not in network.label("kernel distance")
    assert short in network.label("Inception score")

    monkeypatch.setattr(inception, "SHA256", hash_of_file)
    standard = Inception(file, KEY)
    assert standard.label("Frechet distance") == "FID"
    assert standard.label("kernel distance") == "KID"
    assert standard.label("precision") == "precision (Inception-v3)"
    assert standard.identity()["weights_sha256"] == hash_of_file


def test_the_file_is_found_where_other_programs_put_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(LimnerError, match=r"github.com/mseitzer/pytorch-fid[\s\S]*" + KEY):
        networks.find_inception(None, KEY)
    for name in (
        "pt_inception-2015-12-05-6726825d.pth",  # pytorch-fid
        "weights-inception-2015-12-05-6726825d.pth",  # torch-fidelity
    ):
        place = tmp_path / "checkpoints" / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"")
        assert networks.find_inception(None, KEY) == place
        assert networks.find_inception(place.parent, KEY) == place
        place.unlink()
    with pytest.raises(LimnerError, match="neither a file nor a folder"):
        networks.find_inception(tmp_path / "no.pth", KEY)
    with pytest.raises(LimnerError, match="contains no"):
        networks.find_inception(tmp_path, KEY)


def test_other_files_are_refused_in_words(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "inception.pth"

    def refused(tensors: object, words: str) -> None:
        torch.save(tensors, path)
        with pytest.raises(LimnerError, match=words):
            Inception(path, KEY)

    torchvision = weights | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    refused(torchvision, r"fc.weight should be \[1008, 2048\], but .* contains \[1000, 2048\]")
    lacking = {n: v for n, v in weights.items() if n != "Mixed_6b.branch_pool.conv.weight"}
    refused(lacking, "Mixed_6b.branch_pool.conv.weight .* does not contain it")
    refused(weights | {"Mixed_8a.conv.weight": torch.zeros(1)}, "unexpected key Mixed_8a")
    refused({"anything": Path("pickled")}, "cannot be read as weights")  # it would be executed
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(LimnerError, match="cannot be read as weights"):
        Inception(path, KEY)


def test_what_only_training_needed_is_left_out(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    plain = {n: v for n, v in weights.items() if "num_batches_tracked" not in n}
    path = tmp_path / "inception.pth"
    torch.save(plain | {"AuxLogits.fc.weight": torch.zeros(1008, 768)}, path)
    Inception(path, KEY)


def test_features_are_computed_in_float32_in_full() -> None:
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    with full_float32(torch.device("cuda")):
        assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
    assert [place.fp32_precision for place in places] == before


def test_numbers_that_are_none_are_not_passed_on(
    network: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_compute", lambda x: torch.full((len(x), 2048), torch.nan))
    with pytest.raises(LimnerError, match=rf"NaN or infinite.*{network.sha256[:12]}"):
        network.features(drawn(1))


def test_what_are_no_pictures_is_refused(network: Inception) -> None:
    for wrong in (torch.zeros(1, 8, 8, 3), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(LimnerError, match=r"uint8 images \[N, H, W, 3\]"):
            network.features(wrong)
