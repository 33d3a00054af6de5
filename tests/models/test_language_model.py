"""``transformer_lm_ext``: every option of fairseq's ``transformer_lm`` as there, or refused by name; with ours on."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq import models
from fairseq.checkpoint_utils import load_model_ensemble_and_task
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from fairseq.quantization_utils import quantize_model_scalar
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterion as EncouragingLossCriterion
from fairseq_ext.training.errors import OptionError
from tests.models.commands import configuration, save_checkpoint
from tests.models.tiny import EOS, PAD, decode_by_step, dictionary, language_model, task, translation_model

TOKENS = torch.tensor([[EOS, 5, 6, 7, 13, 9], [EOS, 9, 8, 12, PAD, PAD]])
TARGET = torch.tensor([[5, 6, 7, 13, 9, EOS], [9, 8, 12, EOS, PAD, PAD]])
GENERATION = OmegaConf.create({"generation": {}})
SIZES = {
    "decoder_embed_dim": 16,
    "decoder_input_dim": 16,
    "decoder_output_dim": 16,
    "decoder_ffn_embed_dim": 32,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
}
DROPOUTS = {"dropout": 0.3, "attention_dropout": 0.2, "activation_dropout": 0.1}
ADAPTIVE_INPUT = {"adaptive_input": True, "adaptive_input_cutoff": "6,10", "adaptive_input_factor": 2.0}
ADAPTIVE_SOFTMAX = {"adaptive_softmax_cutoff": "6,10", "adaptive_softmax_factor": 2.0}
ADAPTIVE = {**ADAPTIVE_INPUT, **ADAPTIVE_SOFTMAX}
TIED = {**ADAPTIVE, "tie_adaptive_weights": True}
CHARACTERS = {"character_embeddings": True, "character_filters": "[(1, 4), (2, 6)]"}

# name: a value that is not the default, and what else it takes to see its effect
HONOURED: dict[str, tuple[Any, dict[str, Any]]] = {
    "activation_fn": ("gelu", {}),
    "dropout": (0.5, {}),
    "attention_dropout": (0.5, {}),
    "activation_dropout": (0.5, {}),
    "relu_dropout": (0.5, {"activation_dropout": 0.0}),
    "decoder_embed_dim": (24, {}),
    "decoder_output_dim": (24, {}),
    "decoder_input_dim": (24, {}),
    "decoder_ffn_embed_dim": (24, {}),
    "decoder_layers": (2, {}),
    "decoder_attention_heads": (4, {}),
    "decoder_normalize_before": (True, {}),
    "no_decoder_final_norm": (True, {"decoder_normalize_before": True}),
    "adaptive_softmax_cutoff": ("6,10", {}),
    "adaptive_softmax_dropout": (0.5, ADAPTIVE_SOFTMAX),
    "adaptive_softmax_factor": (1.5, ADAPTIVE_SOFTMAX),
    "no_token_positional_embeddings": (True, {}),
    "share_decoder_input_output_embed": (True, {}),
    "character_embeddings": (True, {"character_filters": "[(1, 4)]"}),
    "character_filters": ("[(1, 4), (3, 5)]", CHARACTERS),
    "character_embedding_dim": (6, CHARACTERS),
    "char_embedder_highway_layers": (1, CHARACTERS),
    "adaptive_input": (True, {"adaptive_input_cutoff": "6,10"}),
    "adaptive_input_factor": (1.5, ADAPTIVE_INPUT),
    "adaptive_input_cutoff": ("7", ADAPTIVE_INPUT),
    "tie_adaptive_weights": (True, ADAPTIVE),
    "tie_adaptive_proj": (True, TIED),
    "decoder_learned_pos": (True, {}),
    "layernorm_embedding": (True, {}),
    "no_scale_embedding": (True, {}),
    "checkpoint_activations": (True, {}),
    "decoder_layerdrop": (0.5, {}),
    "decoder_layers_to_keep": ("0,2", {}),
    "quant_noise_pq": (0.4, {}),
    "quant_noise_pq_block_size": (4, {"quant_noise_pq": 0.4}),
    "quant_noise_scalar": (0.4, {}),
    "min_params_to_wrap": (1, {}),
    "base_sublayers": (2, {}),
    "base_shuffle": (0, {}),
    "decoder_xformers_att_config": ("{'name': 'fake'}", {}),
    "tokens_per_sample": (50, {"decoder_learned_pos": True, "max_target_positions": None}),
    "max_target_positions": (60, {"decoder_learned_pos": True}),
    # read by the task, not by the model
    "add_bos_token": (True, {}),
    "tpu": (True, {}),
}
# on one CPU, or without BASE layers
INVISIBLE = {"checkpoint_activations", "min_params_to_wrap", "base_sublayers", "base_shuffle", "add_bos_token", "tpu"}
REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {"base_layers": (1, {})}
# fairseq's programs lose them on the way to the model
REPAIRED = ("scale_fc", "scale_attn", "scale_heads", "scale_resids", "offload_activations")


@pytest.fixture(scope="module")
def trained() -> dict[str, DictConfig]:
    """The configurations of a run with either model, as checkpoints hold them."""
    values = {**SIZES, **DROPOUTS, "tokens_per_sample": 16}
    return {
        arch: configuration(arch, values, task="language_modeling") for arch in ("transformer_lm", "transformer_lm_ext")
    }


def build(cfg: DictConfig, values: dict[str, Any]) -> nn.Module:
    """As a checkpoint's configuration is built with ``--model-overrides`` or the arguments of ``from_pretrained``."""
    cfg = copy.deepcopy(cfg)
    overwrite_args_by_name(cfg, values)
    torch.manual_seed(3)
    return quantize_model_scalar(models.build_model(cfg.model, task()), cfg.model)


def loss_of(model: nn.Module) -> Tensor:
    output = model(TOKENS)
    if model.decoder.adaptive_softmax is not None:
        scores, targets = model.decoder.adaptive_softmax(output[0], TARGET.flatten())
        pairs = [(s, t) for s, t in zip(scores, targets, strict=True) if t is not None]
        return sum(F.cross_entropy(s, t, ignore_index=PAD, reduction="sum") for s, t in pairs)
    return F.cross_entropy(output[0].flatten(0, 1), TARGET.flatten(), ignore_index=PAD, reduction="sum")


def observe(model: nn.Module) -> list[Any]:
    """What a model has, computes with its dropout, sends back, and computes without dropout."""
    state = {name: value.clone() for name, value in model.state_dict().items() if "_float_tensor" not in name}  # unset
    seen: list[Any] = [list(model.state_dict()), *state.values()]
    seen += [model.max_positions(), [type(module) for module in model.modules()][1:]]
    torch.manual_seed(5)
    loss = loss_of(model.train())
    loss.backward()
    seen += [loss, *(parameter.grad for parameter in model.parameters())]
    with torch.no_grad():
        output = model.eval()(TOKENS)
        return [*seen, output[0], model.get_normalized_probs(output, log_probs=True)]


def same(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, Tensor) and isinstance(right, Tensor) else left == right


def test_no_field_is_forgotten() -> None:
    names = [item.name for item in dataclasses.fields(TransformerLanguageModelConfig) if item.name != "_name"]
    assert sorted(names) == sorted([*HONOURED, *REFUSED, *REPAIRED])


@pytest.mark.parametrize("name", HONOURED)
def test_honoured(name: str, trained: dict[str, DictConfig], stand_ins: None) -> None:
    value, companions = HONOURED[name]
    ours, stock = (build(cfg, {**companions, name: value}) for cfg in trained.values())
    for actual, expected in zip(observe(ours), observe(stock), strict=True):
        assert same(actual, expected)


def test_noise_reaches_adaptive_inputs(trained: dict[str, DictConfig]) -> None:
    noise = {**ADAPTIVE_INPUT, "quant_noise_pq": 0.4, "quant_noise_pq_block_size": 4}
    ours, stock, quiet = (
        observe(build(trained[arch], {**noise, **extra}))
        for arch, extra in (
            ("transformer_lm_ext", {}),
            ("transformer_lm", {}),
            ("transformer_lm", {"quant_noise_pq": 0.0}),
        )
    )
    assert all(map(same, ours, stock)) and not all(map(same, stock, quiet))


@pytest.mark.parametrize("name", sorted(HONOURED.keys() - INVISIBLE))
def test_the_comparison_sees_it(name: str, trained: dict[str, DictConfig], stand_ins: None) -> None:
    """Guards the test above: the value changes fairseq's own model."""
    value, companions = HONOURED[name]
    changed, default = (
        observe(build(trained["transformer_lm"], {**companions, **extra})) for extra in ({name: value}, {})
    )
    assert len(changed) != len(default) or not all(same(*pair) for pair in zip(changed, default, strict=True))


def test_refused(trained: dict[str, DictConfig]) -> None:
    for name, (value, companions) in REFUSED.items():
        with pytest.raises(OptionError, match=f"^--{name.replace('_', '-')}"):
            build(trained["transformer_lm_ext"], {**companions, name: value})


@pytest.mark.parametrize("name", REPAIRED[:-1])
def test_repaired(name: str, trained: dict[str, DictConfig]) -> None:
    """As fairseq's model, where that is built from arguments and not by fairseq's programs."""
    arguments = argparse.Namespace(**{**trained["transformer_lm"].model, name: True})
    torch.manual_seed(3)
    stock = TransformerLanguageModel.build_model(arguments, task())
    for actual, expected in zip(
        observe(build(trained["transformer_lm_ext"], {name: True})), observe(stock), strict=True
    ):
        assert same(actual, expected)
    default = observe(build(trained["transformer_lm_ext"], {}))
    assert len(default) != len(observe(stock)) or not all(map(same, default, observe(stock)))


@pytest.mark.parametrize(("name", "runs"), [("dropout", 1), ("checkpoint_activations", 2), ("offload_activations", 2)])
def test_activations_are_computed_again(name: str, runs: int, trained: dict[str, DictConfig]) -> None:
    model = build(trained["transformer_lm_ext"], {name: 1})
    calls = []
    model.decoder.layers[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    loss_of(model.train()).backward()
    assert len(calls) == runs


WRONG = [
    ({**ADAPTIVE_INPUT, **CHARACTERS}, "--character-embeddings: excludes --adaptive-input"),
    ({**ADAPTIVE_INPUT, "share_decoder_input_output_embed": True}, "--share-decoder-input-output-embed: excludes"),
    ({**ADAPTIVE_SOFTMAX, "share_decoder_input_output_embed": True}, "--share-decoder-input-output-embed: excludes"),
    ({**CHARACTERS, "share_decoder_input_output_embed": True}, "--share-decoder-input-output-embed: excludes"),
    (
        {"share_decoder_input_output_embed": True, "decoder_output_dim": 24},
        "--decoder-output-dim 24: excludes --share-decoder-input-output-embed",
    ),
    ({"adaptive_input": True}, "--adaptive-input: needs --adaptive-input-cutoff"),
    ({**ADAPTIVE_INPUT, "adaptive_input_cutoff": "6,99"}, "--adaptive-input-cutoff: 99 is more than the 16 entries"),
    ({"adaptive_softmax_cutoff": "6,99"}, "--adaptive-softmax-cutoff: 99 is more than the 16 entries"),
    ({"adaptive_softmax_cutoff": "9,6"}, "--adaptive-softmax-cutoff: must be numbers that increase"),
    ({"adaptive_softmax_cutoff": "0,6"}, "--adaptive-softmax-cutoff: must be numbers that increase"),
    ({"adaptive_softmax_cutoff": "1.5,6"}, "--adaptive-softmax-cutoff: must be numbers that increase"),
    ({"adaptive_softmax_cutoff": ""}, "--adaptive-softmax-cutoff: must be numbers like 5000,20000, got ''"),
    ({"adaptive_softmax_cutoff": "six"}, "--adaptive-softmax-cutoff: must be numbers like 5000,20000, got 'six'"),
    ({**ADAPTIVE_INPUT, "adaptive_input_factor": 5.0}, "--adaptive-input-factor: 5.0 leaves nothing of width 16"),
    (
        {**ADAPTIVE_INPUT, "quant_noise_pq": 0.4},
        "--quant-noise-pq-block-size: 8 does not divide 4, of the widths [16, 8, 4]",
    ),
    ({**ADAPTIVE_SOFTMAX, "adaptive_softmax_factor": 0.0}, "--adaptive-softmax-factor: 0.0 leaves nothing"),
    ({"tie_adaptive_weights": True}, "--tie-adaptive-weights: needs --adaptive-input and --adaptive-softmax-cutoff"),
    ({**ADAPTIVE_INPUT, "tie_adaptive_weights": True}, "--tie-adaptive-weights: needs --adaptive-input and"),
    ({**TIED, "adaptive_input_cutoff": "7"}, "--tie-adaptive-weights: needs --adaptive-softmax-cutoff [6, 10] equal"),
    ({**TIED, "adaptive_input_factor": 1.5}, "--tie-adaptive-weights: needs --adaptive-softmax-factor 2.0 equal"),
    ({**TIED, "decoder_input_dim": 24}, "--tie-adaptive-weights: needs --decoder-input-dim 24 equal"),
    ({**TIED, "decoder_output_dim": 24}, "--tie-adaptive-weights: needs --decoder-output-dim 24 equal"),
    ({"tie_adaptive_proj": True}, "--tie-adaptive-proj: has no effect without --tie-adaptive-weights"),
    ({**CHARACTERS, "character_filters": "[(1, 4, 2)]"}, "--character-filters: must be pairs of width and channels"),
    ({**CHARACTERS, "character_filters": "open('x')"}, "--character-filters: must be pairs like [(1, 64), (2, 128)]"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda value: value[:60] if isinstance(value, str) else None)
def test_what_cannot_work_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        language_model(width=16, ffn=16, **values)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


RECIPES = {
    "adaptive": {**TIED, "tie_adaptive_proj": True, "adaptive_softmax_dropout": 0.1, "no_decoder_final_norm": True},
    "untied": {**ADAPTIVE, "decoder_input_dim": 24, "decoder_output_dim": 8},
    "characters": CHARACTERS,
    "projected": {"decoder_input_dim": 24, "decoder_output_dim": 24, "share_decoder_input_output_embed": True},
    "pruned": {"decoder_layers": 3, "decoder_layers_to_keep": "0,2"},
}
OURS = {
    "top2": {"attention_topk": 2},
    "entmax15": {"attention_normalizer": "entmax15"},
    "adanorm": {"norm": "adanorm", "decoder_normalize_before": True},
    "muse": {"block": "muse", "muse_kernels": "3,5", "init": "km"},
    "muse-simple": {"block": "muse-simple", "decoder_normalize_before": True},
    "span": {"attention_span": 5, "attention_span_ramp": 2, "attention_span_init": 0.5, "attention_topk": 3},
}


def criterion_of(model: nn.Module) -> Any:
    words = SimpleNamespace(target_dictionary=dictionary())
    return (
        AdaptiveLoss(words, False)
        if model.decoder.adaptive_softmax is not None
        else CrossEntropyCriterion(words, False)
    )


@pytest.mark.parametrize("option", OURS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_take_our_options(recipe: str, option: str) -> None:
    """They train with fairseq's criterion, decode step by step as in one pass, and serve beam search."""
    torch.manual_seed(1)
    model = language_model(width=16, **{**RECIPES[recipe], **OURS[option]})
    sample = {"net_input": {"src_tokens": TOKENS}, "target": TARGET, "ntokens": 10, "nsentences": 2}
    criterion = criterion_of(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss, _, _ = criterion(model.train(), sample)
        loss.backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not missing, missing
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

    model.eval()
    with torch.no_grad():
        full = model.get_normalized_probs(model(TOKENS), log_probs=True)
        stepwise = model.get_normalized_probs((decode_by_step(model, TOKENS), None), log_probs=True)
        real = TOKENS.ne(PAD)
        torch.testing.assert_close(stepwise[real], full[real], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(full.exp().sum(-1), torch.ones(full.shape[:2]))
        model.prepare_for_inference_(GENERATION)
        generator = SequenceGenerator([model], dictionary(), beam_size=3, max_len_b=5)
        prefix = {"net_input": {"src_tokens": TOKENS[:, 1:3], "src_lengths": torch.tensor([2, 2])}}
        for hypotheses in generator.generate([model], prefix, prefix_tokens=TOKENS[:, 1:3]):
            tokens = hypotheses[0]["tokens"]
            inputs = torch.cat([torch.tensor([EOS]), tokens[:-1]])[None]
            lprobs = model.get_normalized_probs(model(inputs), log_probs=True)[0]
            scores = lprobs.gather(-1, tokens[:, None]).squeeze(-1)
            torch.testing.assert_close(hypotheses[0]["positional_scores"], scores, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", [CrossEntropyCriterion, LabelSmoothedCrossEntropyCriterion, EncouragingLossCriterion])
def test_other_criterions_validate_an_adaptive_softmax_and_do_not_train_it(kind: Any) -> None:
    model = language_model(width=16, **TIED)
    sample = {"net_input": {"src_tokens": TOKENS}, "target": TARGET, "ntokens": 10, "nsentences": 2}
    smoothing = [] if kind is CrossEntropyCriterion else [0.0]
    criterion = kind(SimpleNamespace(target_dictionary=dictionary()), False, *smoothing)
    loss = criterion.eval()(model.eval(), sample)[0]
    log_probs = model.get_normalized_probs(model(TOKENS), log_probs=True)
    torch.testing.assert_close(loss, -log_probs.gather(-1, TARGET[..., None])[TARGET.ne(PAD)].sum())
    with pytest.raises(OptionError, match=r"--adaptive-softmax-cutoff.* trains with --criterion adaptive_loss alone$"):
        criterion.train()(model.train(), sample)


def test_the_encouraging_loss_does_not_train_an_adaptive_softmax_in_translation_either() -> None:
    model = translation_model(adaptive_softmax_cutoff="6,10", adaptive_softmax_factor=2.0)
    net_input = {"src_tokens": TOKENS, "src_lengths": TOKENS.ne(PAD).sum(-1), "prev_output_tokens": TOKENS}
    criterion = EncouragingLossCriterion(SimpleNamespace(target_dictionary=dictionary()), False, 0.1)
    with pytest.raises(OptionError, match=r"^--criterion label_smoothed_encouraging_loss: excludes --adaptive-softmax"):
        criterion(model, {"net_input": net_input, "target": TARGET, "ntokens": 10})


@pytest.mark.parametrize("option", ["plain", *OURS])
def test_a_trained_model_is_pruned_when_loaded(option: str, tmp_path: Path) -> None:
    values = {**SIZES, "dropout": 0.0, "tokens_per_sample": 16, "decoder_layerdrop": 0.1, **OURS.get(option, {})}
    cfg = configuration("transformer_lm_ext", values, task="language_modeling")
    torch.manual_seed(1)
    model = models.build_model(cfg.model, task()).eval()
    path = save_checkpoint(model, cfg, tmp_path / "model.pt")
    (pruned,), _, _ = load_model_ensemble_and_task([str(path)], arg_overrides={"decoder_layers_to_keep": "0,2"})
    assert len(pruned.decoder.layers) == 2
    full = model(TOKENS)[0]
    del model.decoder.layers[1]
    expected = model(TOKENS)[0]
    torch.testing.assert_close(pruned.eval()(TOKENS)[0], expected)
    assert not torch.allclose(full, expected)
