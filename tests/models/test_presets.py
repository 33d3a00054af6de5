"""Every named preset builds what it says, and an option given by the user wins over it."""

from __future__ import annotations

import argparse
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import nn

from fairseq_ext.models import CaptioningTransformerExtModel, TransformerExtModel, TransformerLanguageModelExt
from fairseq_ext.models.captioning_options import CaptioningTransformerExtConfig
from fairseq_ext.models.config import TransformerExtConfig, TransformerLanguageModelExtConfig
from fairseq_ext.recipes import PRESETS, values
from fairseq_ext.training.errors import OptionError
from tests.helpers import ROOT
from tests.models import tiny_images
from tests.models.tiny import dictionary, task, translation_model

DEFAULTS = {name: values(preset.settings) for name, preset in PRESETS.items()}
CONFIGS = {
    TransformerExtModel: TransformerExtConfig,
    TransformerLanguageModelExt: TransformerLanguageModelExtConfig,
    CaptioningTransformerExtModel: CaptioningTransformerExtConfig,
}
TASKS = {
    TransformerExtModel: "translation",
    TransformerLanguageModelExt: "language_modeling",
    CaptioningTransformerExtModel: "captioning",
}


def task_of(name: str) -> SimpleNamespace:
    """What the preset's model is built from."""
    return tiny_images.task("regions") if TASKS[ARCH_MODEL_REGISTRY[name]] == "captioning" else task()


def arguments(name: str, **given: Any) -> argparse.Namespace:
    """What fairseq's parser hands over for ``--arch name`` and the ``given`` options."""
    args = argparse.Namespace(**given)
    ARCH_CONFIG_REGISTRY[name](args)
    defaults = CONFIGS[ARCH_MODEL_REGISTRY[name]]()
    for field in dataclasses.fields(defaults):
        if not hasattr(args, field.name):
            setattr(args, field.name, getattr(defaults, field.name))
    if ARCH_MODEL_REGISTRY[name] is not TransformerExtModel:  # what the task says
        args.tokens_per_sample = args.max_source_positions = args.max_target_positions = 16
    return args


def build(name: str, task: SimpleNamespace, **given: Any) -> nn.Module:
    with torch.device("meta"):  # the structure is the matter here, not the weights
        return ARCH_MODEL_REGISTRY[name].build_model(arguments(name, **given), task)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_summary_and_only_known_options(name: str) -> None:
    summary = ARCH_CONFIG_REGISTRY[name].__doc__
    assert ARCH_CONFIG_REGISTRY[name].__name__ == name
    assert summary == PRESETS[name].summary and summary.endswith(".") and "\n" not in summary
    fields = {field.name for field in dataclasses.fields(CONFIGS[ARCH_MODEL_REGISTRY[name]])}
    assert set(DEFAULTS[name]) <= fields


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name: str) -> None:
    """At full depth, with the width of a toy."""
    sides = ("decoder",) if ARCH_MODEL_REGISTRY[name] is TransformerLanguageModelExt else ("encoder", "decoder")
    small = {f"{side}_{what}": size for side in sides for what, size in (("embed_dim", 32), ("ffn_embed_dim", 16))}
    small |= {option: "6,10" for option in DEFAULTS[name] if option.endswith("_cutoff")}
    model = ARCH_MODEL_REGISTRY[name].build_model(arguments(name, **small), task_of(name))
    for side in sides:
        stack = getattr(model, side)
        assert len(stack.layers) == DEFAULTS[name][f"{side}_layers"]
        assert stack.layers[0].self_attn.num_heads == DEFAULTS[name][f"{side}_attention_heads"]
    tokens = torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        inputs = {"src_tokens": tokens} if len(sides) == 1 else {"src_tokens": tokens, "src_lengths": None}
        inputs = tiny_images.image("regions", 4) if isinstance(model, CaptioningTransformerExtModel) else inputs
        previous = {"prev_output_tokens": tokens} if len(sides) == 2 else {}
        assert model.eval()(**inputs, **previous)[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "parameters"), [("muse_iwslt_de_en", 48_184_368), ("muse_simple_iwslt_de_en", 43_981_824)]
)
def test_sizes_of_muse(name: str, parameters: int) -> None:
    """With dictionaries of 8848 and 6632 entries and no norm that a layer does not use."""
    words = SimpleNamespace(source_dictionary=dictionary(8848 - 4), target_dictionary=dictionary(6632 - 4))
    assert len(words.source_dictionary) == 8848 and len(words.target_dictionary) == 6632
    assert sum(parameter.numel() for parameter in build(name, words).parameters()) == parameters


def test_cross_view_presets_have_no_parameters_of_their_own() -> None:
    def size(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    for suffix in ("iwslt_de_en", "wmt_en_de"):
        assert size(build(f"gca_transformer_{suffix}", task())) == size(build(f"transformer_ext_{suffix}", task()))


@pytest.mark.parametrize(
    ("cross_view", "fusion", "parameters"),
    [
        ("gca", "mean", lambda d, n: 0),
        ("gca", "sum", lambda d, n: 0),
        ("gca", "concat", lambda d, n: 0),
        ("gca", "gate", lambda d, n: n - 1),
        ("gca", "sequential", lambda d, n: 2 * d * (n - 1)),
        ("gca", "separate", lambda d, n: (4 * d * d + 4 * d) * (n - 1)),
        ("ama", "mean", lambda d, n: d * d),
        ("ama-static", "mean", lambda d, n: n * n),
    ],
)
def test_views_have_the_parameters_that_their_page_counts(cross_view: str, fusion: str, parameters: Any) -> None:
    """The layer with a single view has none, or DDP would wait for gradients that never come."""

    def size(**options: str) -> int:
        return sum(parameter.numel() for parameter in translation_model(width=8, layers=3, **options).parameters())

    assert size(cross_view=cross_view, cross_view_fusion=fusion) - size() == parameters(8, 3)
    page = (ROOT / "docs" / "methods" / "gca.md").read_text(encoding="utf-8")
    if parameters(512, 6) and fusion != "mean":
        assert f"{parameters(512, 6):,}" in page and f"{parameters(512, 7):,}" in page


def test_an_option_given_by_the_user_wins(tmp_path: Any) -> None:
    parser = options.get_training_parser("translation")
    line = [str(tmp_path), "--arch", "muse_iwslt_de_en", "--dropout", "0.25", "--muse-kernels", "5"]
    args = options.parse_args_and_arch(parser, line)
    assert (args.dropout, args.muse_kernels) == (0.25, "5")
    assert (args.encoder_embed_dim, args.decoder_layers, args.block) == (384, 12, "muse")


def test_a_width_is_also_that_of_the_words_in_a_language_model() -> None:
    for name in ("transformer_lm_ext_wiki103", "adanorm_transformer_lm_enwik8"):
        args = arguments(name, decoder_embed_dim=256)
        assert args.decoder_input_dim == args.decoder_output_dim == 256
        assert arguments(name, decoder_embed_dim=256, decoder_input_dim=64).decoder_input_dim == 64
    assert arguments("transformer_lm_ext_wiki103").decoder_input_dim == 1024


def test_the_wikitext_preset_is_fairseqs() -> None:
    def parse(arch: str) -> argparse.Namespace:
        parser = options.get_training_parser("language_modeling")
        return options.parse_args_and_arch(parser, ["data", "--task", "language_modeling", "--arch", arch])

    ours, stock = parse("transformer_lm_ext_wiki103"), parse("transformer_lm_wiki103")
    assert DEFAULTS["transformer_lm_ext_wiki103"]
    for option in DEFAULTS["transformer_lm_ext_wiki103"]:
        assert getattr(ours, option) == getattr(stock, option), option


def test_a_preset_leaves_out_what_the_user_has_switched_off() -> None:
    """``--arch muse_wmt_en_de --block transformer`` is a Transformer of that size, and not a refusal."""
    for name, defaults in DEFAULTS.items():
        for option, off in (("block", "transformer"), ("norm", "layernorm"), ("attention_topk", 0)):
            if option in defaults:
                build(name, task_of(name), **{option: off})
    assert arguments("muse_wmt_en_de", block="transformer").muse_input_dropout == 0.0
    assert arguments("muse_wmt_en_de", block="muse-simple").muse_input_dropout == 0.1
    assert arguments("adanorm_released_transformer_iwslt_de_en", norm="layernorm").norm_scope == "all"
    with pytest.raises(OptionError, match=r"^--muse-input-dropout 0.2: has no effect with --block transformer$"):
        build("muse_wmt_en_de", task(), block="transformer", muse_input_dropout=0.2)


def test_a_preset_is_a_choice_of_fairseqs_command_line(tmp_path: Any) -> None:
    for name in PRESETS:
        task_name = TASKS[ARCH_MODEL_REGISTRY[name]]
        parser = options.get_training_parser(task_name)
        args = options.parse_args_and_arch(parser, [str(tmp_path), "--task", task_name, "--arch", name])
        for option, value in DEFAULTS[name].items():
            assert getattr(args, option) == value, (name, option)
