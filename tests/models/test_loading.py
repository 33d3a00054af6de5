"""Trained models in fairseq's programs: pruned, overridden, ensembled, and as its older code reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task, prune_state_dict
from fairseq.models import build_model
from torch import Tensor, nn

from fairseq_ext.models import TransformerExtModel
from fairseq_ext.training.errors import OptionError
from tests.models.commands import TINY, configuration, save_checkpoint
from tests.models.tiny import PAD, language_model, task, translation_model

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [PAD, PAD, 5, 6, 2]])
PREVIOUS = torch.tensor([[2, 5, 6, 7], [2, 9, 8, PAD]])
BLOCKS = {
    "plain": {},
    "top2": {"attention_topk": 2},
    "adanorm": {"norm": "adanorm"},
    "muse": {"block": "muse", "muse_kernels": "3/5/7"},
}


def trained(folder: Path, arch: str = "transformer_ext", **values: Any) -> tuple[nn.Module, Path]:
    torch.manual_seed(1)
    cfg = configuration(arch, {**TINY, "dropout": 0.0, **values})
    model = build_model(cfg.model, task())
    return model, save_checkpoint(model, cfg, folder / f"{arch}.pt")


def load(path: Path, **overrides: Any) -> nn.Module:
    models, _, _ = load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    return models[0]


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    model.eval()
    return model(SOURCE, None, PREVIOUS)[0]


def without_layers(model: nn.Module, **dropped: set[int]) -> Tensor:
    """What ``model`` computes once layers have been cut out of it."""
    for side, numbers in dropped.items():
        stack = getattr(model, side)
        kept = [number for number in range(len(stack.layers)) if number not in numbers]
        stack.layers = nn.ModuleList(stack.layers[number] for number in kept)
        stack.num_layers = len(stack.layers)
    return logits(model)


@pytest.mark.parametrize("block", ["plain", "top2", "adanorm"])
def test_layers_to_keep(block: str, tmp_path: Path) -> None:
    model, path = trained(tmp_path, encoder_layerdrop=0.1, decoder_layerdrop=0.1, **BLOCKS[block])
    pruned = load(path, encoder_layers_to_keep="0,2", decoder_layers_to_keep="1")
    assert (len(pruned.encoder.layers), len(pruned.decoder.layers)) == (2, 1)
    assert torch.equal(logits(pruned), without_layers(model, encoder={1}, decoder={0, 2}))


@pytest.mark.parametrize(("side", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_one_side_alone(side: str, other: str, tmp_path: Path) -> None:
    model, path = trained(tmp_path)
    pruned = load(path, **{f"{side}_layers_to_keep": "2,0"})
    assert (len(getattr(pruned, side).layers), len(getattr(pruned, other).layers)) == (2, 3)
    assert torch.equal(logits(pruned), without_layers(model, **{side: {1}}))


def test_kernels_of_the_layers_that_stay(tmp_path: Path) -> None:
    model, path = trained(tmp_path, **BLOCKS["muse"])
    keep = {"encoder_layers_to_keep": "0,2", "decoder_layers_to_keep": "0,2"}
    with pytest.raises(OptionError, match="--muse-kernels '3/5/7' names 3 layers, but the model has 2"):
        load(path, **keep)
    pruned = load(path, **keep, muse_kernels="3/7")
    torch.testing.assert_close(logits(pruned), without_layers(model, encoder={1}, decoder={1}))


def test_from_pretrained(tmp_path: Path) -> None:
    model, path = trained(tmp_path)
    data = str(path.parent / "data")
    hub = TransformerExtModel.from_pretrained(str(path.parent), path.name, data, encoder_layers_to_keep="0,2")
    assert torch.equal(logits(hub.models[0]), without_layers(model, encoder={1}))
    with pytest.raises(
        TypeError, match="prev_output_tokens"
    ):  # as the doctor says; the day this fails, its line can go
        hub.score(["x"])


def test_overrides_of_an_older_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the options that came later; a name that no option has is named."""
    model, path = trained(tmp_path)
    state = torch.load(path)
    del state["cfg"]["model"]["encoder_layers_to_keep"], state["cfg"]["model"]["decoder_output_dim"]
    torch.save(state, path)
    assert torch.equal(logits(load(path)), logits(model))
    assert "no option" not in caplog.text
    pruned = load(path, encoder_layers_to_keep="0,2", encoder_layer_to_keep="0")
    assert torch.equal(logits(pruned), without_layers(model, encoder={1}))
    assert "this checkpoint has no option encoder_layer_to_keep (--model-overrides, or from_pretrained)" in caplog.text


@pytest.mark.parametrize("keep", ["0,2", "1"])
def test_what_is_trained_pruned_can_be_loaded(keep: str, tmp_path: Path) -> None:
    """From scratch, and from a larger model; a program saves the configuration that it built the model from."""
    cfg = configuration("transformer_ext", {**TINY, "dropout": 0.0, "encoder_layers_to_keep": keep})
    for number, start in enumerate([None, trained(tmp_path)[0].state_dict()]):
        model = build_model(cfg.model, task())
        if start is not None:
            model.load_state_dict(start, model_cfg=cfg.model)
        path = save_checkpoint(model, cfg, tmp_path / f"{number}.pt")
        assert torch.equal(logits(load(path)), logits(model))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("0,3", "--encoder-layers-to-keep 0,3: the checkpoint has no layer 3"),
        ("0,x", "--encoder-layers-to-keep: must be different layer numbers"),
        ("1,1", "--encoder-layers-to-keep: must be different layer numbers"),
        ("-1", "--encoder-layers-to-keep: must be different layer numbers"),
    ],
)
def test_layers_that_are_not_there(keep: str, message: str, tmp_path: Path) -> None:
    _, path = trained(tmp_path)
    with pytest.raises(OptionError, match=message):
        load(path, encoder_layers_to_keep=keep)


def test_older_code_finds_the_arguments(tmp_path: Path) -> None:
    paths = []
    for seed in (123, 456):
        folder = tmp_path / str(seed)
        folder.mkdir()
        paths.append(str(trained(folder, seed=seed, attention_topk=seed)[1]))
    ensemble, cfg, _ = load_model_ensemble_and_task(paths)
    assert [model.args.seed for model in ensemble] == [123, 456]
    assert [model.args.attention_topk for model in ensemble] == [123, 456]
    assert ensemble[0].args.arch == "transformer_ext" and ensemble[0].args.task == "translation"
    assert cfg.common.seed == 456
    state = ensemble[0].state_dict()
    pruning = type(ensemble[0].args)(**{**vars(ensemble[0].args), "encoder_layers_to_keep": "0"})
    assert "encoder.layers.1.fc1.weight" not in prune_state_dict(state, pruning)


def test_arguments_beside_a_task_of_the_older_form() -> None:
    values = {**TINY, "seed": 7, "encoder_langtok": "src"}
    cfg = configuration("transformer_ext", values, task="translation_multi_simple_epoch")
    arguments = build_model(cfg.model, task()).args
    assert (arguments.seed, arguments.encoder_langtok, arguments.arch) == (7, "src", "transformer_ext")
    assert arguments.task == "translation_multi_simple_epoch" and arguments.encoder_layers == 3


def test_arguments_of_a_model_built_in_a_program() -> None:
    assert translation_model(attention_topk=3).args.attention_topk == 3
    assert language_model(attention_topk=3).args.decoder_embed_dim == 8


def test_literals_are_never_evaluated(tmp_path: Path) -> None:
    """fairseq hands these to ``eval``, and here a checkpoint brings them."""
    attack = f"__import__('pathlib').Path({str(tmp_path / 'attacked')!r}).touch()"
    for name in ("encoder_xformers_att_config", "decoder_xformers_att_config"):
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}: must be a dictionary"):
            translation_model(**{name: attack})
    with pytest.raises(OptionError, match="--adaptive-softmax-cutoff: must be numbers"):
        translation_model(adaptive_softmax_cutoff=attack)
    for name in ("adaptive_softmax_cutoff", "decoder_xformers_att_config"):
        with pytest.raises(OptionError):
            language_model(**{name: attack})
    assert not (tmp_path / "attacked").exists()
