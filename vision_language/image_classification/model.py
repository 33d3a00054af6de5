"""A classifier of pixels: a Hugging Face model with the normalisation of its images inside, saved as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from fairseq_ext.training.errors import CheckpointError, OptionError, choose
from fairseq_ext.training.pretrained import LOCAL, load_model, loading, read_config, save_folder
from vision_language.image_classification.classifiers import CosineLinear, LargeMarginLinear
from vision_language.image_classification.networks import CifarResNet, EfficientNet, LargeMarginCNN, ThreeConvolutions
from vision_language.image_classification.options import NETWORKS, NetworkOptions
from vision_language.image_classification.preprocessing import Preprocessing

__all__ = ["ImageClassifier", "ImageNetwork", "ImageNetworkConfig", "build", "load"]

SMALL_IMAGE = 64
"""Images up to this size: the ResNet begins with a 3x3 convolution and no pooling, which would leave hardly a pixel."""

RESNETS = {
    "resnet18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
    "resnet50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]},
}


class ImageNetworkConfig(PreTrainedConfig):
    """Shape of an :class:`ImageNetwork`.

    Args:
        network: a name of ``NETWORKS``, or ``timm:NAME``.
        num_channels: channels of an image.
        image_size: height and width of an image.
        width: width of ``large-margin-cnn``; 0 for its default, 64.
        margin: margin of ``large-margin-cnn``; 1 for none.
        cosine_scale: scale of a last layer that gives cosines; 0 for a linear layer.
        **options: options that every configuration has, such as ``id2label``.
    """

    model_type = "fairseq_ext_image_network"

    def __init__(
        self,
        network: str = "three-convolutions",
        num_channels: int = 1,
        image_size: int = 28,
        width: int = 0,
        margin: int = 1,
        cosine_scale: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.network, self.num_channels, self.image_size = network, num_channels, image_size
        self.width, self.margin, self.cosine_scale = width, margin, cosine_scale


class _ResNet(nn.Module):
    """The ResNet of transformers, with a stem for small images."""

    def __init__(self, config: ImageNetworkConfig) -> None:
        super().__init__()
        channels = config.num_channels
        settings: Any = {"num_channels": channels, "num_labels": config.num_labels, **RESNETS[config.network]}
        self.model = ResNetForImageClassification(ResNetConfig(**settings))
        if config.image_size <= SMALL_IMAGE:
            stem: Any = self.model.resnet.embedder
            stem.embedder.convolution = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
            stem.pooler = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _timm(config: ImageNetworkConfig) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise OptionError(f"--network {config.network}: timm cannot be imported here ({error})") from error
    name = config.network.removeprefix("timm:")
    if name not in timm.list_models():
        choose("--network timm", name, timm.list_models())
    return timm.create_model(name, pretrained=False, num_classes=config.num_labels, in_chans=config.num_channels)


def _network(config: ImageNetworkConfig) -> nn.Module:
    channels, classes = config.num_channels, config.num_labels
    if config.network.startswith("timm:"):
        return _timm(config)
    return {
        "three-convolutions": lambda: ThreeConvolutions(channels, classes),
        "large-margin-cnn": lambda: LargeMarginCNN(channels, classes, config.width or 64, config.margin),
        "resnet32": lambda: CifarResNet(channels, classes),
        "resnet18": lambda: _ResNet(config),
        "resnet50": lambda: _ResNet(config),
        "efficientnet-b0": lambda: EfficientNet(channels, classes),
    }[config.network]()


class ImageNetwork(PreTrainedModel):
    """The networks of this package in Hugging Face's form.

    Args:
        config: which network, and its shape.
    """

    config_class = ImageNetworkConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ImageNetworkConfig) -> None:
        super().__init__(config)
        self.drawn = False
        self.network = _network(config)
        if config.cosine_scale:
            name, layer = last_linear(self.network, config.num_labels)
            cosines = CosineLinear(layer.weight.size(1), config.num_labels, config.cosine_scale)
            parent, _, last = name.rpartition(".")
            setattr(self.network.get_submodule(parent), last, cosines)
        self.post_init()
        self.drawn = True

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights that a folder lacks; a network draws all of its own when it is built."""
        own = module.parameters(recurse=False)
        if self.drawn and not all(getattr(parameter, "_is_hf_initialized", False) for parameter in own):
            module.reset_parameters()  # type: ignore[operator]

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        """Logits; only the margin of ``large-margin-cnn`` uses ``labels``."""
        arguments = () if self.config.margin == 1 else (labels,)
        return ImageClassifierOutputWithNoAttention(logits=self.network(pixel_values, *arguments))


AutoConfig.register(ImageNetworkConfig.model_type, ImageNetworkConfig)
AutoModelForImageClassification.register(ImageNetworkConfig, ImageNetwork)


def last_linear(model: nn.Module, classes: int) -> tuple[str, Any]:
    """Name and module of the layer that gives the logits.

    Raises:
        OptionError: the model has no linear layer with so many outputs as classes.
    """
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, (nn.Linear, LargeMarginLinear)) and module.weight.size(0) == classes:
            return name, module
    raise OptionError(f"--network: a {type(model).__name__} has no linear last layer of {classes} classes")


def _head(model: PreTrainedModel) -> str:
    """The name of the last layer, which is drawn anew where the classes are new."""
    return last_linear(model, model.config.num_labels)[0]


class ImageClassifier(nn.Module):
    """Logits of pixels in [0, 1]: the normalisation is inside, so that an attack works on what a person sees.

    Args:
        model: a Hugging Face image classifier.
        preprocessing: size and normalisation of its images.

    Shape:
        - pixels: ``(N, channels, size, size)``; output: ``(N, classes)``
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: PreTrainedModel, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(name for _, name in sorted((self.model.config.id2label or {}).items()))

    @property
    def train_counts(self) -> list[int] | None:
        """Number of training images of each class; None where the folder lacks it, as those of other programs do."""
        return getattr(self.model.config, "train_counts", None)

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.preprocessing.mean)

    def last_linear(self) -> Any:
        """The layer that gives the logits."""
        return last_linear(self.model, len(self.classes))[1]

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits; ``labels`` are needed only in training, by a network with a margin."""
        arguments = {"labels": labels} if isinstance(self.model, ImageNetwork) else {}
        return self.model(pixel_values=(pixels - self.mean) / self.std, **arguments).logits

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``AutoModelForImageClassification.from_pretrained`` and :func:`load` read."""
        save_folder(self.model, self.preprocessing, folder)


def build(options: NetworkOptions, classes: tuple[str, ...], preprocessing: Preprocessing) -> ImageClassifier:
    """A network to train, with random weights or those of a Hugging Face folder.

    Args:
        options: the name of the network, or its folder, and its shape.
        classes: names of the classes.
        preprocessing: of the training images; a Hugging Face folder's own preprocessing takes precedence.

    Raises:
        OptionError: no such network, or an option that the network does not have.
        CheckpointError: the folder holds no image classifier.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    labels: dict[str, Any] = {"id2label": dict(enumerate(classes)), "label2id": numbers}
    channels = len(preprocessing.mean)
    if options.network in NETWORKS or options.network.startswith("timm:"):
        shape = options.network, channels, preprocessing.size, options.width, options.margin, options.cosine_scale
        config = ImageNetworkConfig(*shape, **labels)
        return ImageClassifier(ImageNetwork(config), preprocessing)
    if not Path(options.network).is_dir():
        choose("--network", options.network, NETWORKS)
    if options.cosine_scale:
        raise OptionError(f"--cosine-scale {options.cosine_scale:g}: only of --network {', '.join(NETWORKS)}")
    read_config(options.network)
    with loading(options.network):
        settings = AutoConfig.from_pretrained(options.network, **LOCAL, **labels)
        if options.from_scratch:
            model = AutoModelForImageClassification.from_config(settings)
        else:
            kind = AutoModelForImageClassification
            model, _ = load_model(kind.from_pretrained, options.network, start=True, head=_head, config=settings)
    read = Preprocessing.read(options.network, model.config)
    if options.image_size:
        read = read.of_size(options.image_size)
    return ImageClassifier(model, read)


def _are_counts(counts: Any, classes: int) -> bool:
    return isinstance(counts, list) and len(counts) == classes and all(type(n) is int and n > 0 for n in counts)


def load(folder: str | Path) -> ImageClassifier:
    """A trained classifier, in evaluation mode.

    Args:
        folder: folder of a Hugging Face image classifier, such as a training of this package writes.

    Raises:
        OptionError: no such folder.
        CheckpointError: no image classifier in it, or its ``train_counts`` are no counts of its classes.
    """
    read_config(folder)
    model, _ = load_model(AutoModelForImageClassification.from_pretrained, folder)
    counts = getattr(model.config, "train_counts", None)
    if counts is not None and not _are_counts(counts, model.config.num_labels):
        raise CheckpointError(
            f"{folder}: train_counts of its config.json must be the training images of each of its "
            f"{model.config.num_labels} classes, got {str(counts)[:60]}"
        )
    return ImageClassifier(model, Preprocessing.read(folder, model.config)).eval()
