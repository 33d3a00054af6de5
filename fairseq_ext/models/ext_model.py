"""The common base of ``transformer_ext`` and ``transformer_lm_ext``: pruned loading, and preparation for generation."""

from __future__ import annotations

import argparse
import logging
import re
from typing import Any

from fairseq.models import BaseFairseqModel
from fairseq.modules import FairseqDropout

from fairseq_ext.models.fused import MUSE_FORMS, fuse_for_inference
from fairseq_ext.models.stock_options import parse_layers
from fairseq_ext.training.errors import OptionError

__all__ = ["ExtModel"]

logger = logging.getLogger(__name__)


class ExtModel(BaseFairseqModel):
    """What the suite's models share: options in fairseq's older form, pruning, the names of retained dropouts."""

    def configure(self, cfg: Any, arguments: argparse.Namespace) -> None:
        """Keeps the options, also as ``args``, which fairseq's older code reads."""
        self.cfg = cfg
        self.args = arguments

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: argparse.Namespace | None = None,
    ) -> Any:
        """As in fairseq, but ``--encoder-layers-to-keep`` and ``--decoder-layers-to-keep`` are those of the model.

        fairseq's own way forgets the options once it has pruned, loses the side for which none is given, and prunes
        again a model that is pruned already: the checkpoints that it trains from then on cannot be loaded.
        """
        pruning = None
        if self.cfg.encoder.layers_to_keep or self.cfg.decoder.layers_to_keep:
            keep = {f"{side}_layers_to_keep": self._layers_to_load(side, state_dict) for side in ("encoder", "decoder")}
            pruning = argparse.Namespace(arch="transformer", **keep)
        return super().load_state_dict(state_dict, strict, model_cfg=pruning)

    def _layers_to_load(self, side: str, state_dict: dict[str, Any]) -> str:
        names = (re.match(rf"{side}\.layers\.(\d+)\.", name) for name in state_dict)
        present = sorted({int(name[1]) for name in names if name})
        option, kept = f"--{side}-layers-to-keep", getattr(self.cfg, side).layers_to_keep
        if kept and present != list(range(getattr(self.cfg, side).layers)):
            missing = sorted(set(parse_layers(option, kept)) - set(present))
            if missing:
                raise OptionError(f"{option} {kept}: the checkpoint has no layer {missing[0]}, it has {present}")
            return kept
        return ",".join(map(str, present))

    def prepare_for_inference_(self, cfg: Any) -> None:
        """As in fairseq, which says nothing of modules whose dropout was not retained at all."""
        modules = getattr(cfg.generation, "retain_dropout_modules", None)
        if modules and not getattr(cfg.generation, "retain_dropout", False):
            logger.warning("--retain-dropout-modules %s: has no effect without --retain-dropout", modules)
        super().prepare_for_inference_(cfg)

    def make_generation_fast_(self, retain_dropout_modules: Any = None, **kwargs: Any) -> None:
        """As in fairseq, but MUSE layers are fused, and names of retained dropouts may be fairseq's or ours."""
        if retain_dropout_modules is not None:
            retain_dropout_modules = self._with_subclasses(retain_dropout_modules)
        super().make_generation_fast_(retain_dropout_modules=retain_dropout_modules, **kwargs)
        if not self.cfg.muse_no_fuse:
            fuse_for_inference(self, MUSE_FORMS)

    def _with_subclasses(self, names: Any) -> Any:
        names = names if isinstance(names, str) else list(names)  # names are looked for inside a text, as in fairseq
        dropping = {type(module) for module in self.modules() if FairseqDropout in map(type, module.children())}
        answers = {
            kind.__name__: {_dropout_name(base) for base in kind.__mro__ if base.__module__.startswith("fairseq")}
            for kind in dropping
        }
        chosen = [name for name, also in answers.items() if any(answer in names for answer in also)]
        unknown = set(re.findall(r"\w+", names) if isinstance(names, str) else names).difference(*answers.values())
        if unknown:
            present = {module.module_name for module in self.modules() if isinstance(module, FairseqDropout)}
            logger.warning(
                "--retain-dropout-modules %s: no such module, there are %s",
                ", ".join(sorted(unknown)),
                ", ".join(sorted(present)),
            )
        return " ".join([names, *chosen]) if isinstance(names, str) else [*names, *chosen]


def _dropout_name(kind: type) -> str:
    """The name that fairseq gives to the dropouts of a class."""
    names = {"TransformerEncoderBase": "TransformerEncoder", "TransformerDecoderBase": "TransformerDecoder"}
    return names.get(kind.__name__, kind.__name__)
