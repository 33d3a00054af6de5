"""``--inference-dtype``: an option of fairseq's generation that fairseq's programs, hub and models follow."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.errors import OptionError

__all__ = ["add_inference_dtype"]

OPTION = "--inference-dtype"
HELP = (
    "decode on a CPU with weights packed once, in float32 (equal up to rounding), bfloat16 or int8 (faster); "
    "without it, the model is as it was trained"
)


def add_inference_dtype() -> bool:
    """Give ``--inference-dtype`` to ``fairseq-generate``, ``-interactive``, ``-eval-lm`` and ``from_pretrained``.

    All other programs refuse it, as it would do nothing there.
    """
    from fairseq import checkpoint_utils, hub_utils, options
    from fairseq.dataclass.configs import GenerationConfig
    from fairseq.dataclass.initialize import hydra_init
    from fairseq.models import BaseFairseqModel
    from fairseq.tasks import FairseqTask
    from fairseq.trainer import Trainer
    from omegaconf import open_dict

    _extend(GenerationConfig, "inference_dtype", Optional[str], HELP)  # noqa: UP045, fairseq reads no other spelling
    hydra_init()

    @wrapping(options, "add_eval_lm_args")
    def add_eval_lm_args_with_dtype(upstream: Any, parser: Any) -> None:
        upstream(parser)
        parser.add_argument(OPTION, help=HELP)

    @wrapping(BaseFairseqModel, "prepare_for_inference_")
    def prepare_for_inference_(upstream: Any, self: Any, cfg: Any) -> None:
        upstream(self, cfg)
        dtype = getattr(cfg.generation, "inference_dtype", None)
        if dtype is not None:
            from fairseq_ext.models.inference import convert_for_inference_

            convert_for_inference_(self, dtype)

    @wrapping(hub_utils, "from_pretrained")
    def from_pretrained_with_dtype(
        upstream: Any, *args: Any, inference_dtype: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        parts = upstream(*args, **kwargs)
        if inference_dtype is not None:
            with open_dict(parts["args"]):  # a checkpoint may be older than the option
                parts["args"].generation.inference_dtype = inference_dtype
        return parts

    @wrapping(checkpoint_utils, "overwrite_args_by_name")
    def overwrite_args_by_name(upstream: Any, cfg: Any, overrides: dict[str, Any]) -> None:
        if "inference_dtype" in overrides:
            raise OptionError(f"--model-overrides: inference_dtype is no option of the model, give {OPTION}")
        upstream(cfg, overrides)

    @wrapping(FairseqTask, "build_generator")
    def build_generator_of_converted(
        upstream: Any, self: Any, models: Any, args: Any, *rest: Any, **kwargs: Any
    ) -> Any:
        dtype = getattr(args, "inference_dtype", None)
        for model in models:
            converted = getattr(model, "inference_dtype", None)
            if dtype is not None and converted != dtype:
                state = converted or "as it was trained"
                raise OptionError(f"{OPTION} {dtype}: the model is {state}; give it to a program or to from_pretrained")
        return upstream(self, models, args, *rest, **kwargs)

    @wrapping(Trainer, "__init__")
    def build_trainer_without(upstream: Any, self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        dtype = getattr(getattr(cfg, "generation", None), "inference_dtype", None)
        if dtype is not None:
            raise OptionError(f"generation.inference_dtype={dtype}: has no effect on a training")
        upstream(self, cfg, *args, **kwargs)

    return True


def _extend(dataclass: type, name: str, annotation: Any, text: str) -> None:
    """Add an option without a default to one of fairseq's groups, in place: parsers and hydra hold the class itself."""
    for item in dataclasses.fields(dataclass):
        if item.name in dataclass.__annotations__:
            setattr(dataclass, item.name, item)  # or its help would be lost
    setattr(dataclass, name, dataclasses.field(default=None, metadata={"help": text}))
    dataclass.__annotations__[name] = annotation
    dataclasses.dataclass(dataclass)
