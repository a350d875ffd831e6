"""Feature networks: their interface (`FeatureNetwork`), what they measure (`Metric`), two of them.

The name of a metric depends on the network, its weights, and the preprocessing: `label` uses the
published name ("FID") only if all three match the published metric.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.evaluation.networks import efficientnet, inception
from limner.memory import in_parts_that_fit
from limner.pretrained.hub import find_file

Metric = Literal[
    "Frechet distance",
    "kernel distance",
    "precision",
    "recall",
    "Inception score",
    "CMMD",
    "CLIP score",
]
SHOWN = 12
"""Number of hexadecimal digits of a hash in messages."""
INCEPTION_FILES = ("*inception-2015-12-05-6726825d.pth", "*inception-2015-12-05*.safetensors")


class FeatureNetwork:
    """Base class of feature extractors.

    Attributes:
        name: display name, such as "Inception-v3" or "CLIP ViT-L/14-336".
        sha256: of the loaded weights.
        verified: whether these are the weights used for published numbers.
        preparation: a description of the preprocessing.
        width: of the features.
        config_sha256: of the model's configuration file; "" if the architecture is built in.
    """

    published: ClassVar[dict[Metric, str]] = {}
    """Published names of metrics on these features, used if the weights are verified."""
    metrics: ClassVar[tuple[Metric, ...]] = (
        "Frechet distance",
        "kernel distance",
        "precision",
        "recall",
    )
    """Metrics measured on these features."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        sha256: str,
        verified: bool,
        preparation: str,
        width: int,
        device: torch.device,
        config_sha256: str = "",
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.name, self.sha256, self.verified = name, sha256, verified
        self.preparation, self.width, self.device = preparation, width, device
        self.config_sha256 = config_sha256

    def features(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Extract features.

        Args:
            images: uint8 [N, H, W, 3], RGB.
            batch_size: images per batch; reduced if memory runs out.

        Returns:
            float32 [N, width] on the CPU, computed in full float32.

        Raises:
            LimnerError: the shape or dtype of the images is wrong, or the features contain NaN or
                infinite values, for example because the weights are damaged.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
            raise LimnerError(
                f"{self.name} expects uint8 images [N, H, W, 3]; got {images.dtype} "
                f"{list(images.shape)}"
            )
        return self._in_parts(images, batch_size)

    def identity(self) -> dict[str, str]:
        """Everything that determines the features; equal identities give equal features."""
        return {
            "network": self.name,
            "weights_sha256": self.sha256,
            "config_sha256": self.config_sha256,
            "preparation": self.preparation,
        }

    def label(self, metric: Metric) -> str:
        """The name of `metric` on these features, with the hash of unverified weights."""
        if self.verified:
            return self.published.get(metric, f"{metric} ({self.name})")
        return f"{metric} ({self.name}) (unverified weights {self.sha256[:SHOWN]})"

    def _in_parts(self, images: Tensor, batch_size: int) -> Tensor:
        def all_of_them(size: int) -> Tensor:
            found = [
                self._compute(self._prepare(part)).float().cpu() for part in images.split(size)
            ]
            return torch.cat(found)

        if not len(images):
            return torch.empty(0, self.width)
        with torch.no_grad(), full_float32(self.device):
            found = in_parts_that_fit(batch_size, all_of_them)
        if not torch.isfinite(found).all():
            raise LimnerError(
                f"{self.name} returned NaN or infinite features; its weights "
                f"({self.sha256[:SHOWN]}) are damaged, or the device is faulty"
            )
        return found

    def _prepare(self, images: Tensor) -> Tensor:
        """Preprocess uint8 [B, H, W, 3] for the network, on the device."""
        raise NotImplementedError

    def _compute(self, prepared: Tensor) -> Tensor:
        """-> [B, width]."""
        raise NotImplementedError


class EfficientNet(FeatureNetwork):
    """EfficientNet-Lite0 with the weights of a Python package.

    Raises:
        LimnerError: the package is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(
            efficientnet.open_network(),
            "EfficientNet-Lite0",
            efficientnet.SHA256,
            True,
            f"resized to {efficientnet.SIDE} x {efficientnet.SIDE} (bicubic, antialiased), "
            "(x - 127) / 128",
            efficientnet.WIDTH,
            torch.device(device),
        )

    def _prepare(self, images: Tensor) -> Tensor:
        return efficientnet.prepare(images.to(self.device))

    def _compute(self, prepared: Tensor) -> Tensor:
        return self.model(prepared)


class Inception(FeatureNetwork):
    """Inception-v3 of 2015: FID, KID, Inception score.

    Args:
        weights: the file pt_inception-2015-12-05-6726825d.pth, a folder that contains it, or the
            Hub id of a repository that does; None: the cache of pytorch-fid or torch-fidelity.
        key: name of the setting, for messages.

    Raises:
        LimnerError: the weights are not available, or belong to a different network.
    """

    published: ClassVar[dict[Metric, str]] = {
        "Frechet distance": "FID",
        "kernel distance": "KID",
        "Inception score": "Inception score",
    }
    metrics: ClassVar[tuple[Metric, ...]] = (*FeatureNetwork.metrics, "Inception score")
    model: inception.InceptionV3

    def __init__(
        self, weights: str | Path | None, key: str, device: torch.device | str = "cpu"
    ) -> None:
        path = find_inception(weights, key)
        sha256 = file_sha256(path)
        model = inception.InceptionV3()
        _load_inception(model, path, key)
        super().__init__(
            model,
            "Inception-v3",
            sha256,
            sha256 == inception.SHA256,
            f"resized to {inception.SIDE} x {inception.SIDE} (bilinear of TensorFlow 1, not "
            "antialiased), (x - 128) / 128",
            inception.WIDTH,
            torch.device(device),
        )

    def logits(self, features: Tensor) -> Tensor:
        """For the Inception score: `features` [N, 2048] -> float32 [N, 1008], without bias."""
        with torch.no_grad(), full_float32(self.device):
            return self.model.logits(features.to(self.device)).cpu()

    def _prepare(self, images: Tensor) -> Tensor:
        return inception.prepare(images.to(self.device))

    def _compute(self, prepared: Tensor) -> Tensor:
        return self.model(prepared)


def find_inception(weights: str | Path | None, key: str) -> Path:
    """The path of the weights; see `Inception`. Raises LimnerError."""
    if weights is not None:
        return find_file(str(weights), key, INCEPTION_FILES)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for pattern in INCEPTION_FILES:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise LimnerError(
        "FID, KID, and the Inception score require the weights of Inception-v3, which are not in "
        f"{folder}. Download (96 MB)\n"
        "  "
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth\n"
        f"to that folder, or elsewhere and set {key} to the file. Without it, only the distances "
        "on EfficientNet-Lite0 are measured."
    )


def _load_inception(model: inception.InceptionV3, path: Path, key: str) -> None:
    try:
        if path.suffix == ".safetensors":
            found = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
        tensors = dict(found)
    except Exception as error:  # a damaged file, or no weights, raises nearly any exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LimnerError(f"{key}: {path} cannot be read as weights: {reason}") from None
    # Batch counters, and the auxiliary head that is only used in training.
    tensors = {
        name: value
        for name, value in tensors.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("AuxLogits.")
    }
    wanted = {name: v for name, v in model.state_dict().items() if "num_batches" not in name}
    for name, value in wanted.items():
        shape = getattr(tensors.get(name), "shape", None)
        if shape != value.shape:
            there = "does not contain it" if shape is None else f"contains {list(shape)}"
            raise LimnerError(
                f"{key}: {path} is not the Inception-v3 used for FID: {name} should be "
                f"{list(value.shape)}, but the file {there} (torchvision's Inception-v3, with 1000 "
                "classes, is a different network)"
            )
    if others := sorted(tensors.keys() - wanted.keys()):
        raise LimnerError(
            f"{key}: {path} is not the Inception-v3 used for FID: unexpected key {others[0]}"
        )
    model.load_state_dict(tensors, strict=False)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file. Raises LimnerError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LimnerError(f"{path} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Full float32 precision: no autocast and no TensorFloat-32, which cuDNN uses by default and
    whose 10-bit mantissa would affect a low FID."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
        before = [place.fp32_precision for place in places]
        for place in places:
            place.fp32_precision = "ieee"
        try:
            yield
        finally:
            for place, precision in zip(places, before, strict=True):
                place.fp32_precision = precision
