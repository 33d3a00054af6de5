"""The object that ``from_pretrained`` of a captioning model returns."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.hub_utils import GeneratorHubInterface
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_ext.modules.visual import grid_geometry
from fairseq_ext.tasks.caption_dataset import image_batch
from fairseq_ext.training.errors import DataError, OptionError

__all__ = ["CaptioningHubInterface"]


class CaptioningHubInterface(GeneratorHubInterface):
    """fairseq's hub interface for images in place of sentences.

    Example:
        >>> model = CaptioningTransformerExtModel.from_pretrained("checkpoints", "checkpoint_best.pt", "DATA")
        >>> model.caption(features, box_geometry(boxes, width, height))
        'a dog runs on the beach'
    """

    @torch.no_grad()
    def caption(
        self,
        features: Tensor | None,
        geometry: Tensor | None = None,
        labels: Tensor | None = None,
        beam: int = 3,
        **generation: Any,
    ) -> str:
        """The caption of one image of R regions.

        Args:
            features: ``(R, D)``, or None for images that are classes of boxes alone.
            geometry: ``(R, 7)``, see :func:`~fairseq_ext.modules.visual.box_geometry`; not needed for a grid.
            labels: ``(R,)`` class numbers, where the data has classes.
            beam: size of the beam.
            **generation: fairseq's other options of generation, such as ``lenpen=1.2``; ``max_len_b``, the most words
                of a caption, is 20 unless given.

        Raises:
            DataError: the image is not what the model was trained on.
        """
        batch = image_batch([self._image(features, geometry, labels)], self.tgt_dict)
        net_input = {name: values.to(self.device) for name, values in batch.items()}
        # the options of generation alone: the task warns of scoring options beside them, and nothing is scored here
        cfg = OmegaConf.create(OmegaConf.to_container(self.cfg.generation, enum_to_str=True))
        for name, value in {"max_len_b": 20, **generation, "beam": beam}.items():
            if name not in cfg:
                raise OptionError(f"caption: fairseq's generation has no option {name}")
            cfg[name] = value
        generator = self.task.build_generator(self.models, cfg)
        hypotheses = self.task.inference_step(generator, self.models, {"net_input": net_input})
        return self.task.text(hypotheses[0][0]["tokens"])

    def encode(self, sentence: str) -> Tensor:
        """Always refused: fairseq's ``translate``, ``sample`` and ``score`` begin with it."""
        raise OptionError("a captioning model reads images, not sentences: use caption(features, geometry, labels)")

    def _image(self, features: Tensor | None, geometry: Tensor | None, labels: Tensor | None) -> dict[str, Tensor]:
        data, visual = self.task.preparation, [model.encoder.visual for model in self.models]
        if data.kind == "grid" and geometry is None:
            geometry = grid_geometry(*data.grid)
        # for each part of an image: what was given, whether the models read it, and how wide it is
        parts = {
            "features": (features, any(part.feature_dim for part in visual), (data.feature_dim,)),
            "geometry": (geometry, any(part.numbers for part in visual), (7,)),
            "labels": (labels, any(part.num_classes for part in visual), ()),
        }
        given = {name: values for name, (values, _, _) in parts.items() if values is not None}
        for name, (_, read, _) in parts.items():
            if read and name not in given:
                raise DataError(f"caption: no {name}, which the model reads of {data.kind}")
        if features is not None and not data.feature_dim:
            raise DataError(f"caption: features are given, the model reads {data.kind} without")
        regions = data.grid[0] * data.grid[1] if data.grid else max(map(len, given.values()))
        if not regions:
            raise DataError("caption: the image has no regions")
        for name, values in given.items():
            shape = (regions, *parts[name][2])
            if tuple(values.shape) != shape:
                raise DataError(f"caption: {name} {tuple(values.shape)}, must be {shape}")
            if not values.isfinite().all():
                raise DataError(f"caption: a number of {name} is not finite")
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
            raise DataError(f"caption: labels must be at least 0 and below {data.num_classes}")
        given.setdefault("geometry", torch.zeros(regions, 7))
        dtypes = {"features": torch.float, "geometry": torch.float, "labels": torch.long}
        return {name: values.to("cpu", dtypes[name]) for name, values in given.items()}
