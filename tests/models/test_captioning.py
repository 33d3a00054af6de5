"""``captioning_transformer_ext``: every option of ``transformer_ext`` composes with images, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterion
from fairseq_ext.training.errors import OptionError
from tests.models.test_combinations import assert_reorders
from tests.models.tiny import EOS, PAD, decode_by_step, dictionary
from tests.models.tiny_images import PREVIOUS, captioning_model, collate, image, task

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pre-norm": PRE_NORM,
    "top-2": {"attention_topk": 2},
    "top-2 of all heads": {"attention_topk": 2, "attention_topk_select": "heads"},
    "sparsemax": {"attention_normalizer": "sparsemax"},
    "entmax15": {"attention_normalizer": "entmax15"},
    "adanorm": {"norm": "adanorm", **PRE_NORM},
    "gca": {"cross_view": "gca"},
    "gca, sequential": {"cross_view": "gca", "cross_view_fusion": "sequential"},
    "gca, separate norms": {"cross_view": "gca", "cross_view_norm": "separate", **PRE_NORM},
    "muse": {"block": "muse", "muse_kernels": "3,5"},
    "muse-simple": {"block": "muse-simple", "attention_topk": 2, "cross_view": "fma"},
    "all": {"attention_topk": 2, "norm": "layernorm-simple", "cross_view": "gca", "init": "km"},
    "embedding norm": {"layernorm_embedding": True, "no_scale_embedding": True},
    "g5": {"visual_geometry": "g5"},
    "no geometry": {"visual_geometry": "none"},
    "classes": {"visual_classes": True},
    "learned": {"visual_position": "learned"},
    "sinusoid": {"visual_position": "sinusoid"},
    "no position": {"visual_position": "none"},
}
# whose kind of images an option is for
ALONE = {"classes": "labelled", "learned": "grid", "sinusoid": "grid", "no position": "grid"}
KINDS = ("regions", "grid", "classes")
CASES = [
    (kind, name)
    for name in OPTIONS
    for kind in ([ALONE[name]] if name in ALONE else KINDS)
    if (kind, name) != ("grid", "no geometry")
]


def build(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    model = captioning_model(kind, **options)
    for parameter in model.parameters():  # gates, mixes and gains must not sit at a symmetric initial value
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(kind: str) -> dict[str, Tensor]:
    return collate(image(kind, 6, seed=1), image(kind, 4, seed=2))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_option_trains_decodes_and_ignores_padding(kind: str, name: str) -> None:
    model, inputs = build(kind, **OPTIONS[name]), batch(kind)
    logits, _ = model.train()(**inputs, prev_output_tokens=PREVIOUS)
    logits[PREVIOUS.ne(PAD)].log_softmax(-1)[:, 5].sum().backward()
    # the key bias shifts all scores of a query alike, which no softmax notices
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert all(name.endswith("k_proj.bias") for name in silent), f"zero gradient: {silent}"

    model.eval()
    with torch.no_grad():
        full, extra = model(**inputs, prev_output_tokens=PREVIOUS)
        alone, _ = model(**image(kind, 4, seed=2), prev_output_tokens=PREVIOUS[1:, :4])
        torch.testing.assert_close(alone[0], full[1, :4], **TOLERANCE)
        encoder_out = model.encoder.forward_torchscript({**inputs, "prev_output_tokens": PREVIOUS})
        stepwise = decode_by_step(model, PREVIOUS, encoder_out)
        real = PREVIOUS.ne(PAD)
        torch.testing.assert_close(stepwise[real], full[real], **TOLERANCE)
        assert_reorders(model, full, encoder_out)
        assert not extra["attn"][0][inputs["src_tokens"].eq(PAD)[:, None].expand(-1, 5, -1)].any(), "reads padding"


def test_the_state_dict_of_a_captioning_model_has_stable_names() -> None:
    """Those of fairseq's Transformer but for the embedding."""
    stock = {name for name in captioning_model("regions").state_dict() if not name.startswith("encoder.visual.")}
    assert {name for name in stock if "layers" not in name} == {
        *("encoder.version", "decoder.version", "decoder.embed_tokens.weight", "decoder.output_projection.weight"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_scores_what_it_returns(kind: str) -> None:
    model, inputs = build(kind, attention_topk=2, cross_view="gca").eval(), batch(kind)
    generator = SequenceGenerator([model], dictionary(10), beam_size=3, max_len_b=5)
    with torch.no_grad():
        for row, hypotheses in enumerate(generator.generate([model], {"net_input": inputs})):
            assert len(hypotheses) == 3
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"]
                previous = torch.cat([tokens.new_tensor([EOS]), tokens[:-1]])[None]
                logits, _ = model(**image(kind, (6, 4)[row], seed=row + 1), prev_output_tokens=previous)
                expected = logits[0].log_softmax(-1).gather(-1, tokens[:, None]).mean().item()
                assert hypothesis["score"].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["regions", "labelled", "classes"])
@pytest.mark.parametrize("name", ["dense", "all", "sparsemax", "muse-simple"])
def test_the_order_of_regions_does_not_matter(kind: str, name: str) -> None:
    assert reordered_difference(kind, OPTIONS[name]) < 1e-5


def test_a_convolution_over_regions_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert reordered_difference("regions", OPTIONS["muse"]) > 1e-3
    assert "--block muse: its convolution reads neighbours in the order of the file" in caplog.text
    caplog.clear()
    build("grid", **OPTIONS["muse"])
    build("regions", **OPTIONS["muse-simple"])
    assert not caplog.records


def reordered_difference(kind: str, options: dict[str, Any]) -> float:
    """How much logits change where the regions of an image come in another order."""
    model, inputs = build(kind, **options).eval(), image(kind, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    reordered = {name: value if name == "src_lengths" else value[:, order] for name, value in inputs.items()}
    with torch.no_grad():
        one, other = (model(**given, prev_output_tokens=PREVIOUS[:1])[0] for given in (inputs, reordered))
    return (one - other).abs().max().item()


@pytest.mark.parametrize("kind", [*KINDS, "labelled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    """The trainer casts every floating number of a batch, geometry too; fairseq-generate --fp16 the model alone."""
    model, inputs = build(kind, visual_classes=kind == "labelled").eval(), batch(kind)
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        expected, _ = model(**inputs, prev_output_tokens=PREVIOUS)
        actual, _ = model.to(dtype)(**half, prev_output_tokens=PREVIOUS)
        generated, _ = model(**inputs, prev_output_tokens=PREVIOUS)
    assert actual.dtype == dtype
    assert torch.equal(generated, actual)
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"attention_topk": 2, "cross_view": "gca"}, {"block": "muse-simple"}])
def test_converted_for_inference(kind: str, options: dict[str, Any]) -> None:
    model, inputs = build(kind, **options).eval(), batch(kind)
    with torch.no_grad():
        expected, _ = model(**inputs, prev_output_tokens=PREVIOUS)
        model.prepare_for_inference_(
            OmegaConf.create({"generation": {"inference_dtype": "float32"}, "common_eval": {}})
        )
        actual, _ = model(**inputs, prev_output_tokens=PREVIOUS)
        torch.testing.assert_close(actual, expected, **TOLERANCE)
        stepwise = decode_by_step(model, PREVIOUS, model.encoder(**inputs))
        real = PREVIOUS.ne(PAD)
        torch.testing.assert_close(stepwise[real], expected[real], **TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_encouraging_loss_with_and_without_its_logits(kind: str) -> None:
    model, inputs = build(kind, share_decoder_input_output_embed=True), batch(kind)
    target = torch.tensor([[5, 6, 7, 11, EOS], [9, 8, 12, EOS, PAD]])
    sample = {"net_input": {**inputs, "prev_output_tokens": PREVIOUS}, "target": target, "ntokens": 9}
    losses = [
        LabelSmoothedEncouragingLossCriterion(task(kind), False, 0.1, fused_output_loss=fused)(model, sample)[0]
        for fused in (False, True)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("names", "retained"), [(None, True), (["VisualEmbedding"], True), (["TransformerDecoder"], False)]
)
def test_its_dropout_can_be_retained(names: list[str] | None, retained: bool) -> None:
    model, inputs = build("regions", visual_dropout=0.5).eval(), image("regions", 6)
    generation = {"retain_dropout": True, "retain_dropout_modules": names}
    model.prepare_for_inference_(OmegaConf.create({"generation": generation, "common_eval": {}}))
    with torch.no_grad():
        one, other = (model(**inputs, prev_output_tokens=PREVIOUS[:1])[0] for _ in range(2))
    assert torch.equal(one, other) is not retained


@pytest.mark.parametrize("name", ["checkpoint_activations", "offload_activations"])
def test_activations_may_be_computed_again(name: str) -> None:
    gradients = []
    for options in ({}, {name: True}):
        model = build("regions", **options, attention_topk=2)
        model(**batch("regions"), prev_output_tokens=PREVIOUS)[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_compiling_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"^--arch captioning_transformer_ext: no torch.jit.script form"):
        torch.jit.script(build("regions"))
