"""The models, batches, training steps and decoders that the whole-model comparisons share. All weights are random."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from benchmarks.timing import Function, Row, generator, on_gpu, time_row
from fairseq_ext.models import TransformerExtModel
from fairseq_ext.models.config import TransformerExtConfig, option_values

# IWSLT14 De-En size; a CPU's batch is smaller than a GPU's, so that one core makes a step in seconds.
LAYERS, WIDTH, FFN, HEADS, VOCABULARY = 6, 512, 1024, 4, 10_000
SENTENCES, SENTENCES_OF_A_GPU, LENGTH = 32, 170, 24
# --quick: enough to see that everything runs.
QUICK_LAYERS, QUICK_WIDTH, QUICK_FFN, QUICK_VOCABULARY, QUICK_SENTENCES, QUICK_LENGTH = 2, 32, 64, 100, 2, 10


def config(quick: bool, **options: Any) -> TransformerExtConfig:
    """A Transformer of IWSLT14 De-En size, changed by ``options``."""
    layers, width, ffn = (QUICK_LAYERS, QUICK_WIDTH, QUICK_FFN) if quick else (LAYERS, WIDTH, FFN)
    values: dict[str, Any] = {"dropout": 0.1, "share_all_embeddings": True}
    for side in ("encoder", "decoder"):
        values |= {f"{side}_layers": layers, f"{side}_embed_dim": width}
        values |= {f"{side}_ffn_embed_dim": ffn, f"{side}_attention_heads": HEADS}
    cfg = TransformerExtConfig()
    for name, value in (values | options).items():
        if not hasattr(cfg, name):
            raise ValueError(f"{name}: transformer_ext has no such option")
        setattr(cfg, name, value)
    return cfg


def task(quick: bool) -> SimpleNamespace:
    """The parts of a translation task that a model needs."""
    words = Dictionary()
    for index in range(QUICK_VOCABULARY if quick else VOCABULARY):
        words.add_symbol(f"w{index}")
    return SimpleNamespace(source_dictionary=words, target_dictionary=words)


def build(quick: bool, **options: Any) -> nn.Module:
    """``transformer_ext`` with ``options``, always from the same seed."""
    torch.manual_seed(1)
    return TransformerExtModel.build_model(config(quick, **options), task(quick))


def build_stock(quick: bool) -> nn.Module:
    """fairseq's own ``transformer`` of the same size and seed."""
    torch.manual_seed(1)
    return TransformerModel.build_model(stock_arguments(quick), task(quick))


def stock_arguments(quick: bool) -> argparse.Namespace:
    """The options of :func:`build_stock` in fairseq's older form."""
    values = option_values(config(quick), TransformerExtConfig)
    options = {name: value for name, value in values.items() if not name.startswith("_")}
    return argparse.Namespace(arch="transformer", **options)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def equal_size_options(quick: bool, **options: Any) -> dict[str, Any]:
    """``options`` and the width (FFN twice as wide) that bring the model closest to the Transformer in parameters."""
    words = task(quick)

    def sized(width: int) -> dict[str, Any]:
        widths = {f"{side}_embed_dim": width for side in ("encoder", "decoder")}
        return options | widths | {f"{side}_ffn_embed_dim": 2 * width for side in ("encoder", "decoder")}

    def count(extra: dict[str, Any]) -> int:
        with torch.device("meta"):
            return parameters(TransformerExtModel.build_model(config(quick, **extra), words))

    wanted, step, widest = count({}), 2 * HEADS, QUICK_WIDTH if quick else WIDTH
    return min((sized(width) for width in range(widest // 2, widest + 1, step)), key=lambda it: abs(count(it) - wanted))


def batch(quick: bool, sentences: int | None = None) -> dict[str, Tensor]:
    """Sentences of nearly equal length, as fairseq batches them: sources padded left, targets padded right."""
    words = task(quick).source_dictionary
    sentences = sentences or (QUICK_SENTENCES if quick else SENTENCES_OF_A_GPU if on_gpu() else SENTENCES)
    longest = QUICK_LENGTH if quick else LENGTH
    random = generator(2)
    tokens = torch.randint(words.nspecial, len(words), (2, sentences, longest), generator=random)
    lengths = torch.randint(longest - 4, longest + 1, (2, sentences), generator=random)
    lengths[:, 0] = longest
    padding = torch.arange(longest) >= lengths[..., None]
    source = tokens[0].masked_fill(padding[0].flip(1), words.pad())
    source[:, -1] = words.eos()
    target = tokens[1].scatter(1, lengths[1, :, None] - 1, words.eos()).masked_fill(padding[1], words.pad())
    previous = target.roll(1, dims=1).masked_fill(padding[1], words.pad())
    previous[:, 0] = words.eos()
    return {"src_tokens": source, "src_lengths": lengths[0], "prev_output_tokens": previous, "target": target}


def train_step(model: nn.Module, quick: bool) -> Function:
    """Forward, smoothed cross-entropy, backward, Adam; on a GPU in bfloat16."""
    model.to(torch.bfloat16 if on_gpu() else torch.float32).train()
    data = batch(quick)
    target = data.pop("target").flatten()
    padding = task(quick).target_dictionary.pad()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def step() -> None:
        logits = model(**data)[0].flatten(0, 1).float()
        F.cross_entropy(logits, target, ignore_index=padding, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train_step_row(case: str, ours: nn.Module, reference: nn.Module, quick: bool, target: float | None = None) -> Row:
    """Training steps of two models; the case tells their parameters."""
    dtype = " in bfloat16" if on_gpu() else ""
    case = f"train step{dtype}, {case}, {parameters(ours) / 1e6:.1f}M / {parameters(reference) / 1e6:.1f}M parameters"
    steps = train_step(ours, quick), train_step(reference, quick)
    return time_row(case, *steps, pairs=1 if quick else 5, target=target)


def prepare_for_generation(model: nn.Module, beam: int, inference_dtype: str | None = None) -> nn.Module:
    """The model prepared as ``fairseq-generate`` does; fuses MUSE layers unless the model's options forbid it."""
    model.eval()
    generation = SimpleNamespace(beam=beam, inference_dtype=inference_dtype)
    model.prepare_for_inference_(SimpleNamespace(generation=generation))
    return model


def decode(model: nn.Module, quick: bool, sentences: int, beam: int) -> tuple[Function, int]:
    """Beam search to a fixed length, as random weights would end anywhere; and the number of tokens it writes."""
    length = QUICK_LENGTH if quick else LENGTH
    words = task(quick).target_dictionary
    search = SequenceGenerator([model], words, beam_size=beam, max_len_a=0, max_len_b=length, min_len=length)
    data = batch(quick, sentences)
    sample = {"net_input": {name: data[name] for name in ("src_tokens", "src_lengths")}}
    return lambda: search.generate([model], sample), sentences * (length + 1)
