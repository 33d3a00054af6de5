"""Models as fairseq's programs build them: a command line, its OmegaConf form, a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tests.models.tiny import dictionary

TINY = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"embed_dim": 16, "ffn_embed_dim": 32, "layers": 3, "attention_heads": 2}.items()
}


def flags(values: dict[str, Any]) -> list[str]:
    """``values`` as a user types them."""
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return words


def parse(
    arch: str, values: dict[str, Any], data: Path | str = "data", task: str = "translation"
) -> argparse.Namespace:
    """The arguments of ``fairseq-train`` with this architecture."""
    parser = options.get_training_parser(task)
    return options.parse_args_and_arch(parser, [str(data), "--task", task, "--arch", arch, *flags(values)])


def configuration(arch: str, values: dict[str, Any], **kwargs: Any) -> DictConfig:
    """What ``fairseq-train`` makes of its arguments."""
    return convert_namespace_to_omegaconf(parse(arch, values, **kwargs))


def save_checkpoint(model: nn.Module, cfg: DictConfig, path: Path, **state: Any) -> Path:
    """A checkpoint with ``model`` and more ``state``, and in ``data`` beside it the dictionaries that text needs."""
    data = path.parent / "data"
    data.mkdir(exist_ok=True)
    if cfg.task._name != "captioning":
        for language in ("de", "en", ""):
            dictionary().save(str(data / f"dict{language and '.'}{language}.txt"))
    cfg.task.data = str(data)
    if "source_lang" in cfg.task:
        cfg.task.source_lang, cfg.task.target_lang = "de", "en"
    history = {"num_updates": 1, "optimizer_name": "FairseqAdam", "lr_scheduler_state": {}}
    iterator = {"epoch": 1, "iterations_in_epoch": 0}
    torch.save(
        {
            "cfg": OmegaConf.to_container(cfg, resolve=True),
            "args": None,
            "model": model.state_dict(),
            "optimizer_history": [history],
            "extra_state": {"train_iterator": iterator},
            **state,
        },
        path,
    )
    return path
