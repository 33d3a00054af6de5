"""Models converted by ``--inference-dtype`` give what they gave before, with every option, or are refused by name."""

from __future__ import annotations

import copy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models.lstm import LSTMDecoder, LSTMEncoder, LSTMModel
from fairseq.quantization_utils import quantize_model_scalar
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from omegaconf import open_dict
from torch import Tensor, nn

from fairseq_ext.models import inference
from fairseq_ext.models.inference import convert_for_inference_, inference_dtype
from fairseq_ext.modules import packed_linear
from fairseq_ext.modules.packed_linear import INFERENCE_DTYPES, PackedLinear
from fairseq_ext.training.errors import OptionError
from tests.models import test_every_option, test_stock_features
from tests.models.commands import configuration, save_checkpoint
from tests.models.tiny import (
    EOS,
    PAD,
    decode_by_step,
    dictionary,
    task,
    translation_config,
    translation_model,
)

SOURCE = torch.tensor([[5, 6, 7, 8, 9, 4, EOS], [PAD, PAD, PAD, 10, 4, 6, EOS]])
PREVIOUS = torch.tensor([[EOS, 5, 6, 7, 11, 8], [EOS, 9, 8, 12, PAD, PAD]])
# of the largest log-probability, through three layers on each side; a top-k selection may change
ERROR = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.05}
EXTRAS: dict[str, tuple[bool, dict[str, Any]]] = {
    "adaptive softmax": (False, {"adaptive_softmax_cutoff": [6, 10], "share_decoder_input_output_embed": True}),
    "adaptive input and softmax": (
        True,
        {
            "adaptive_input": True,
            "adaptive_input_cutoff": "6,10",
            "adaptive_softmax_cutoff": "6,10",
            "tie_adaptive_weights": True,
            "tie_adaptive_proj": True,
        },
    ),
    "character embeddings": (True, {"character_embeddings": True, "character_embedding_dim": 4}),
    "shared embeddings": (False, {"share_all_embeddings": True}),
    "top-k muse with views": (False, {"block": "muse", "attention_topk": 2, "cross_view": "gca", "norm": "adanorm"}),
}
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    **{
        f"{name}{' in a language model' if lm else ''}": (lm, {**row.beside, name: row.value})
        for name, row in test_every_option.ROWS.items()
        for lm in (False, True)
        if (row.lm if lm else row.translation)
    },
    **{
        f"{block}-{feature}": (False, {**test_stock_features.BLOCKS[block], **test_stock_features.FEATURES[feature]})
        for block, feature in product(("plain", "muse"), test_stock_features.FEATURES)
        if (block, feature) not in test_stock_features.REFUSED and feature != "scalar"
    },
    **EXTRAS,
}


def build(lm: bool, **chosen: Any) -> nn.Module:
    model = test_every_option.build(lm, **chosen).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


def prepared(model: nn.Module, dtype: str | None, **generation: Any) -> nn.Module:
    """As fairseq's programs prepare a model that they have loaded."""
    model = copy.deepcopy(model)
    model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(inference_dtype=dtype, **generation)))
    return model


def outputs(model: nn.Module, lm: bool) -> list[Tensor]:
    """Log-probabilities of a whole batch, and of its first sentence one position after the other."""
    with torch.no_grad():
        whole = model(PREVIOUS) if lm else model(SOURCE, None, PREVIOUS)
        first = None if lm else model.encoder(SOURCE[:1], None)
        steps = decode_by_step(model, PREVIOUS[:1], first)
        return [model.get_normalized_probs(net, log_probs=True)[0] for net in (whole, (steps, None))]


@pytest.mark.parametrize("name", CASES)
def test_every_option_in_every_dtype(name: str) -> None:
    lm, chosen = CASES[name]
    model = build(lm, **chosen)
    expected = outputs(prepared(model, None), lm)
    for dtype in INFERENCE_DTYPES:
        converted = prepared(model, dtype)
        left = [path for path, part in converted.named_modules() if type(part) is nn.Linear]
        assert not left and any(isinstance(part, PackedLinear) for part in converted.modules())
        for result, wanted in zip(outputs(converted, lm), expected, strict=True):
            error = (result - wanted).abs().max() / wanted.abs().max()
            assert error <= ERROR[dtype], dtype


def generate(models: list[nn.Module], **options: Any) -> list[list[Any]]:
    generator = SequenceGenerator(models, dictionary(), beam_size=3, max_len_b=8, **options)
    hypotheses = generator.generate(models, {"net_input": {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1)}})
    return [[(hypothesis["tokens"].tolist(), hypothesis["score"].item()) for hypothesis in one] for one in hypotheses]


def tokens(hypotheses: list[list[Any]]) -> list[list[list[int]]]:
    return [[tokens for tokens, _ in one] for one in hypotheses]


@pytest.mark.parametrize("block", ["transformer", "muse"])
@pytest.mark.parametrize("members", [1, 2])
def test_beam_search_alone_and_in_an_ensemble(block: str, members: int) -> None:
    models = [build(False, block=block, attention_topk=3 + member) for member in range(members)]
    expected = generate([prepared(model, None, beam=3) for model in models])
    for dtype in INFERENCE_DTYPES:
        hypotheses = generate([prepared(model, dtype, beam=3) for model in models])
        best = torch.tensor([one[0][1] for one in expected])
        torch.testing.assert_close(torch.tensor([one[0][1] for one in hypotheses]), best, rtol=0.1, atol=0.05)
        if dtype == "float32":
            assert tokens(hypotheses) == tokens(expected)


def test_scores_of_a_language_model() -> None:
    model = build(True)
    scorer = SequenceScorer(dictionary())
    sample = {
        "net_input": {"src_tokens": PREVIOUS, "src_lengths": PREVIOUS.ne(PAD).sum(1)},
        "target": PREVIOUS.roll(-1, dims=1),
        "id": torch.arange(2),
    }
    scores = {}
    for dtype in (None, *INFERENCE_DTYPES):
        scores[dtype] = [one[0]["score"].item() for one in scorer.generate([prepared(model, dtype)], sample)]
    assert scores["float32"] == pytest.approx(scores[None], rel=1e-5)
    assert scores["int8"] == pytest.approx(scores[None], rel=0.05)


def test_without_the_option_nothing_is_replaced() -> None:
    model = build(False)
    before = [type(part) for part in model.modules()]
    assert [type(part) for part in prepared(model, None).modules()] == before
    assert inference_dtype(prepared(model, None)) is None


def test_converting_again_changes_nothing_and_to_another_dtype_is_refused() -> None:
    model = prepared(build(False), "int8")
    parts = list(model.modules())
    assert convert_for_inference_(model, "int8") is model
    assert all(one is other for one, other in zip(model.modules(), parts, strict=True))
    with pytest.raises(OptionError, match=r"^--inference-dtype float32: the model was converted to int8 already"):
        convert_for_inference_(model, "float32")


def test_a_copy_of_a_converted_model_is_converted() -> None:
    model = prepared(build(False, block="muse"), "int8")
    assert torch.equal(outputs(copy.deepcopy(model), False)[0], outputs(model, False)[0])


def test_retained_dropout_stays_random() -> None:
    options = {"beam": 3, "retain_dropout": True, "retain_dropout_modules": None}
    model = prepared(build(False, dropout=0.5), "int8", **options)
    assert not torch.equal(outputs(model, False)[0], outputs(model, False)[0])


def quantized() -> nn.Module:
    model = translation_model(quant_noise_scalar=0.1)
    return quantize_model_scalar(model, translation_config(quant_noise_scalar=0.1))


REFUSED = {
    "half precision": (lambda: build(False).half(), "float16 on cpu; --cpu without --fp16"),
    "another device": (lambda: build(False).to("meta"), "float32 on meta; --cpu without --fp16"),
    "another architecture": (
        lambda: LSTMModel(LSTMEncoder(dictionary()), LSTMDecoder(dictionary())),
        "converts Transformers and their language models, not LSTMModel",
    ),
    "quantized weights": (quantized, "the model is quantized already"),
}


@pytest.mark.parametrize("dtype", INFERENCE_DTYPES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "cuda", lambda tensor: tensor)  # fairseq quantizes on a GPU
    make, message = REFUSED[name]
    model = make()
    before = list(model.modules())
    with pytest.raises(OptionError, match=rf"^--inference-dtype {dtype}: .*({message})"):
        convert_for_inference_(model, dtype)
    assert list(model.modules()) == before


def test_what_the_processor_lacks_is_told_or_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for dtype, lacking in {"int8": "no AVX-512 VNNI", "bfloat16": "no AVX-512 BF16"}.items():
        prepared(build(False), dtype)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: --inference-dtype {dtype}: {lacking}")
    for module in (packed_linear, inference):
        monkeypatch.setattr(module, "is_supported", lambda dtype: False)
    assert inference_dtype(prepared(build(False), "float32")) == "float32"
    assert "no packed products" in capsys.readouterr().err
    with pytest.raises(OptionError, match=r"^--inference-dtype int8: no packed products"):
        prepared(build(False), "int8")


@pytest.mark.parametrize("arch", ["transformer_ext", "transformer"])
def test_from_pretrained(arch: str, tmp_path: Any) -> None:
    from fairseq.models import ARCH_MODEL_REGISTRY

    cfg = configuration(arch, {"encoder_layers": 1, "decoder_layers": 1})
    model = ARCH_MODEL_REGISTRY[arch].build_model(cfg.model, task())
    with open_dict(cfg):
        del cfg.generation.inference_dtype  # checkpoints may be older than the option
    path = save_checkpoint(model, cfg, tmp_path / "model.pt")
    kind = ARCH_MODEL_REGISTRY[arch]
    for dtype in (None, *INFERENCE_DTYPES):
        given = {} if dtype is None else {"inference_dtype": dtype}
        hub = kind.from_pretrained(str(path.parent), path.name, str(path.parent / "data"), **given)
        assert inference_dtype(hub.models[0]) == dtype
        assert hub.translate("t1 t2 t3", beam=2) is not None
        if dtype != "int8":
            with pytest.raises(OptionError, match=r"^--inference-dtype int8: the model is"):
                hub.translate("t1", inference_dtype="int8")
    with pytest.raises(OptionError, match=r"^--inference-dtype: 'int4' is not one of float32, bfloat16, int8"):
        kind.from_pretrained(str(path.parent), path.name, str(path.parent / "data"), inference_dtype="int4")
