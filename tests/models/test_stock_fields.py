"""Every option of fairseq's ``transformer`` does in ``transformer_ext`` what it does there, or is refused by name."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import models
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, QuantNoiseConfig
from fairseq.quantization_utils import quantize_model_scalar
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_ext.models.config import nested_config
from fairseq_ext.training.errors import OptionError
from tests.models.commands import TINY, configuration, parse
from tests.models.tiny import PAD, task

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [PAD, PAD, 5, 6, 2]])
PREVIOUS = torch.tensor([[2, 5, 6, 7], [2, 9, 8, PAD]])
DROPOUTS = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}

# name: a value that is not the default, and what else it takes to see its effect
HONOURED: dict[str, tuple[Any, dict[str, Any]]] = {
    "activation_fn": ("gelu", {}),
    "dropout": (0.5, {}),
    "attention_dropout": (0.5, {}),
    "activation_dropout": (0.5, {}),
    "relu_dropout": (0.5, {"activation_dropout": 0.0}),
    "encoder_embed_path": ("VECTORS", {}),
    "encoder_embed_dim": (24, {}),
    "encoder_ffn_embed_dim": (24, {}),
    "encoder_layers": (2, {}),
    "encoder_attention_heads": (4, {}),
    "encoder_normalize_before": (True, {}),
    "encoder_learned_pos": (True, {}),
    "encoder_layerdrop": (0.5, {}),
    "encoder_layers_to_keep": ("0,2", {}),
    "encoder_xformers_att_config": ("{'name': 'fake'}", {}),
    "max_source_positions": (50, {"encoder_learned_pos": True}),
    "decoder_embed_path": ("VECTORS", {}),
    "decoder_embed_dim": (24, {"decoder_input_dim": 24, "decoder_output_dim": 24}),
    "decoder_ffn_embed_dim": (24, {}),
    "decoder_layers": (2, {}),
    "decoder_attention_heads": (4, {}),
    "decoder_normalize_before": (True, {}),
    "decoder_learned_pos": (True, {}),
    "decoder_layerdrop": (0.5, {}),
    "decoder_layers_to_keep": ("1", {}),
    "decoder_xformers_att_config": ("{'name': 'fake'}", {}),
    "decoder_output_dim": (24, {}),
    "max_target_positions": (50, {"decoder_learned_pos": True}),
    "share_decoder_input_output_embed": (True, {}),
    "share_all_embeddings": (True, {}),
    "merge_src_tgt_embed": (True, {}),
    "no_token_positional_embeddings": (True, {}),
    "adaptive_softmax_cutoff": ([6, 10], {}),
    "adaptive_softmax_dropout": (0.5, {"adaptive_softmax_cutoff": [6, 10]}),
    "adaptive_softmax_factor": (2.0, {"adaptive_softmax_cutoff": [6, 10]}),
    "layernorm_embedding": (True, {}),
    "no_scale_embedding": (True, {}),
    "checkpoint_activations": (True, {}),
    "offload_activations": (True, {}),
    "no_cross_attention": (True, {}),
    "cross_self_attention": (True, {}),
    "quant_noise_pq": (0.4, {}),
    "quant_noise_pq_block_size": (4, {"quant_noise_pq": 0.4}),
    "quant_noise_scalar": (0.4, {}),
    "min_params_to_wrap": (1, {}),
    "export": (True, {"encoder_normalize_before": True}),
    "no_decoder_final_norm": (True, {"decoder_normalize_before": True}),
    "base_sublayers": (2, {}),
    "base_shuffle": (0, {}),
}
# on one CPU, or without BASE layers
INVISIBLE = {
    "min_params_to_wrap",
    "export",
    "base_sublayers",
    "base_shuffle",
    "checkpoint_activations",
    "offload_activations",
}
REFUSED = {
    "adaptive_input": True,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
    "char_inputs": True,
    "base_layers": 1,
    "decoder_input_dim": 24,
}


def stock_fields() -> list[str]:
    nested = {"encoder": EncDecBaseConfig, "decoder": DecoderConfig, "quant_noise": QuantNoiseConfig}
    names = []
    for outer in dataclasses.fields(TransformerConfig):
        inner = [f"{outer.name}_{item.name}" for item in dataclasses.fields(nested.get(outer.name, EncDecBaseConfig))]
        names += inner if outer.name in nested else [outer.name]
    return [name for name in names if not name.endswith("_name")]


def test_no_field_is_forgotten() -> None:
    assert sorted(stock_fields()) == sorted([*HONOURED, *REFUSED])


@pytest.fixture(scope="module")
def trained() -> DictConfig:
    """The configuration of a run, as its checkpoint holds it."""
    return configuration("transformer_ext", {**TINY, **DROPOUTS})


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    words = task().source_dictionary.symbols[4:]
    lines = [f"{word} {' '.join(str(index / 10) for _ in range(16))}" for index, word in enumerate(words)]
    (tmp_path / "vectors.txt").write_text("\n".join([f"{len(words)} 16", *lines]))
    return tmp_path / "vectors.txt"


def build(trained: DictConfig, values: dict[str, Any]) -> nn.Module:
    """As a checkpoint's configuration is built with ``--model-overrides`` or the arguments of ``from_pretrained``."""
    cfg = copy.deepcopy(trained)
    overwrite_args_by_name(cfg, values)
    torch.manual_seed(3)
    return quantize_model_scalar(models.build_model(cfg.model, task()), cfg.model)


def build_stock(values: dict[str, Any]) -> nn.Module:
    arguments = argparse.Namespace(**{**TINY, **DROPOUTS, **values})
    torch.manual_seed(3)
    return quantize_model_scalar(TransformerModel.build_model(arguments, task()), arguments)


def logits(model: nn.Module) -> Tensor:
    output = model(SOURCE, None, PREVIOUS)[0]
    if model.decoder.adaptive_softmax is None:
        return output
    scores, _ = model.decoder.adaptive_softmax(output, torch.tensor([[5, 12, 9, 2], [13, 7, 2, PAD]]))
    return torch.cat([part.flatten() for part in scores if part is not None])


def observe(model: nn.Module) -> list[Any]:
    """What a model has, computes with its dropout, sends back, and computes without dropout."""
    seen: list[Any] = [list(model.state_dict()), *(value.clone() for value in model.state_dict().values())]
    seen += [model.max_positions(), [type(module) for module in model.modules()][1:]]
    torch.manual_seed(5)
    output = logits(model.train())
    output.square().sum().backward()
    seen += [output, *(parameter.grad for parameter in model.parameters())]
    with torch.no_grad():
        return [*seen, logits(model.eval())]


def same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


@pytest.mark.parametrize("name", HONOURED)
def test_honoured(name: str, trained: DictConfig, vectors: Path, stand_ins: None) -> None:
    value, companions = HONOURED[name]
    values = {**companions, name: str(vectors) if value == "VECTORS" else value}
    ours = build(trained, values)
    assert getattr(ours.cfg, name) == values[name]
    for actual, expected in zip(observe(ours), observe(build_stock(values)), strict=True):
        assert same(actual, expected)


@pytest.mark.parametrize("name", sorted(HONOURED.keys() - INVISIBLE))
def test_the_comparison_sees_it(name: str, vectors: Path, stand_ins: None) -> None:
    """Guards the test above: the value changes fairseq's own model."""
    value, companions = HONOURED[name]
    value = str(vectors) if value == "VECTORS" else value
    changed, default = observe(build_stock({**companions, name: value})), observe(build_stock(companions))
    assert len(changed) != len(default) or not all(same(*pair) for pair in zip(changed, default, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, trained: DictConfig) -> None:
    with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}"):
        build(trained, {name: REFUSED[name]})


def test_the_parser_knows_every_field(vectors: Path) -> None:
    values = {name: value for name, (value, _) in HONOURED.items() if name != "relu_dropout"} | REFUSED
    values["adaptive_softmax_cutoff"] = "6,10"
    arguments = parse("transformer_ext", values)
    for name, value in values.items():
        assert getattr(arguments, name) == ([6, 10] if name == "adaptive_softmax_cutoff" else value)


@pytest.mark.parametrize(
    "given", [{}, {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24}, {"decoder_embed_dim": 24}]
)
def test_what_is_left_open_is_as_in_fairseq(given: dict[str, int]) -> None:
    """fairseq's decoder follows the encoder, and its output the decoder."""
    cfg = configuration("transformer_ext", given)
    stock = TransformerConfig.from_namespace(parse("transformer", given))
    for name in stock_fields():
        if name != "base_shuffle":  # fairseq's parser has no default for it
            assert getattr(nested_config(cfg.model), name) == getattr(stock, name), name


def test_hydra_knows_every_field() -> None:
    values = {name: value for name, (value, _) in HONOURED.items()} | REFUSED
    GlobalHydra.instance().clear()
    with initialize_config_module("fairseq.config", version_base="1.1"):
        words = [
            f"+model.{name}={value}" if isinstance(value, list) else f"model.{name}={value!r}"
            for name, value in values.items()
        ]
        cfg = compose("config", overrides=["task=translation", "model=transformer_ext", *words])
    nested = nested_config(cfg.model)
    for name, value in values.items():
        expected = {"encoder_layers": 2, "decoder_layers": 1}.get(name, value)
        assert getattr(nested, name) == expected, name
