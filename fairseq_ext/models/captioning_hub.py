"""What ``from_pretrained`` of a captioning model returns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from fairseq import utils
from fairseq.hub_utils import GeneratorHubInterface
from omegaconf import open_dict
from torch import Tensor

from fairseq_ext.modules.visual import grid_geometry
from fairseq_ext.training.errors import DataError, OptionError


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
            geometry: ``(R, 7)``, see :func:`~fairseq_ext.modules.visual.box_geometry`; that of a grid is known.
            labels: ``(R,)`` class numbers, where the data has classes.
            beam: size of the beam.
            **generation: fairseq's other options of generation, such as ``lenpen=1.2``; ``max_len_b``, the most words
                of a caption, is 20 unless given.

        Raises:
            DataError: the image is not what the model was trained on.
        """
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self.device), self._sample(features, geometry, labels))
        cfg = copy.deepcopy(self.cfg.generation)
        with open_dict(cfg):
            for name, value in {"max_len_b": 20, **generation, "beam": beam}.items():
                if name not in cfg:
                    raise OptionError(f"caption: fairseq's generation has no option {name}")
                cfg[name] = value
        generator = self.task.build_generator(self.models, cfg)
        tokens = self.task.inference_step(generator, self.models, sample)[0][0]["tokens"]
        bpe = "sentencepiece" if self.task.preparation.tokenizer == "sentencepiece" else None
        return self.tgt_dict.string(tokens.int().cpu(), bpe)

    def encode(self, sentence: str) -> Tensor:
        """Refused: what fairseq's ``translate``, ``sample`` and ``score`` begin with."""
        raise OptionError("a captioning model reads images, not sentences: use caption(features, geometry, labels)")

    def _sample(self, features: Tensor | None, geometry: Tensor | None, labels: Tensor | None) -> dict[str, Any]:
        data, visual = self.task.preparation, [model.encoder.visual for model in self.models]
        if data.kind == "grid" and geometry is None:
            geometry = grid_geometry(*data.grid)
        # what there is of an image, what the models read of it, and how wide it is
        parts = {
            "features": (features, any(part.feature_dim for part in visual), (data.feature_dim,)),
            "geometry": (geometry, any(part.numbers for part in visual), (7,)),
            "labels": (labels, any(part.num_classes for part in visual), ()),
        }
        given = {name: values for name, (values, _, _) in parts.items() if values is not None}
        absent = [name for name, (_, read, _) in parts.items() if read and name not in given]
        if absent:
            raise DataError(f"caption: no {absent[0]}, which the model reads of {data.kind}")
        regions = data.grid[0] * data.grid[1] if data.grid else max(map(len, given.values()))
        for name, values in given.items():
            shape = (regions, *parts[name][2])
            if tuple(values.shape) != shape or not regions:
                raise DataError(f"caption: {name} {tuple(values.shape)}, must be {shape}, of one region at least")
            if not values.isfinite().all():
                raise DataError(f"caption: a number of {name} is not finite")
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
            raise DataError(f"caption: labels must be at least 0 and below {data.num_classes}")
        tokens = torch.full((1, regions), self.tgt_dict.unk())
        if data.kind == "classes":
            tokens = given.pop("labels").long()[None] + self.tgt_dict.nspecial
        dtypes = {"features": torch.float, "geometry": torch.float, "labels": torch.long}
        net_input = {name: values.to(dtypes[name])[None] for name, values in given.items()}
        lengths = torch.tensor([regions])
        return {"id": torch.tensor([0]), "net_input": {"src_tokens": tokens, "src_lengths": lengths, **net_input}}
