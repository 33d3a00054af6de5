"""Claim: selecting the top k keys costs little beside dense attention, and far less than sparsemax or entmax."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from entmax import entmax15, sparsemax
from torch import Tensor

from benchmarks.models import build, train_step_row
from benchmarks.timing import Row, forward_backward, time_row
from fairseq_ext.modules.sparse_attention import topk_attention
from fairseq_ext.modules.topk import topk_softmax

K = 8
HEADS, HEAD_DIM = 4, 64
TOKENS, BEAM = 1024, 5


def masked_topk_softmax(scores: Tensor) -> Tensor:
    """The softmax over the top k scores, as one would first write it."""
    threshold = scores.topk(K, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < threshold, float("-inf")).softmax(dim=-1)


REFERENCES = {
    "dense softmax": partial(torch.softmax, dim=-1),
    "topk, mask, softmax": masked_topk_softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
}


def _softmax_rows(keys: int, quick: bool) -> list[Row]:
    """Scores of a batch of ``TOKENS`` tokens in sentences of ``keys``."""
    scores = torch.randn(HEADS * max(1, TOKENS // keys), keys, keys)
    ours = forward_backward(partial(topk_softmax, k=K), scores)
    rows = []
    for name, function in REFERENCES.items():
        target = 0.5 if name == "sparsemax" and keys >= 128 else None
        case = f"topk_softmax / {name}, forward + backward, {tuple(scores.shape)}"
        pairs = 1 if quick else 9
        rows.append(time_row(case, ours, forward_backward(function, scores), pairs=pairs, target=target))
    return rows


def _beam_rows(sentences: int, keys: int, quick: bool) -> list[Row]:
    """One step of beam search: a single query per hypothesis, no gradient."""
    scores = torch.randn(sentences * BEAM * HEADS, 1, keys)
    return [
        time_row(
            f"topk_softmax / {name}, decoding, {tuple(scores.shape)}",
            partial(topk_softmax, scores, K),
            partial(function, scores),
            pairs=1 if quick else 9,
        )
        for name, function in REFERENCES.items()
    ]


def _attention_row(keys: int, quick: bool) -> Row:
    states = torch.randn(3, max(1, TOKENS // keys), HEADS, keys, HEAD_DIM)
    return time_row(
        f"topk_attention / F.scaled_dot_product_attention, forward + backward, {tuple(states[0].shape)}",
        forward_backward(partial(topk_attention, k=K), *states),
        forward_backward(F.scaled_dot_product_attention, *states),
        pairs=1 if quick else 9,
    )


def run(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    rows = []
    for keys in (32, 128) if quick else (32, 64, 128, 256, 512, 1024):
        rows += _softmax_rows(keys, quick)
        rows.append(_attention_row(keys, quick))
    for sentences in (1,) if quick else (1, 64):
        for keys in (32,) if quick else (32, 128):
            rows += _beam_rows(sentences, keys, quick)
    models = build(quick, attention_topk=K), build(quick)
    rows.append(train_step_row(f"--attention-topk {K} / off", *models, quick, target=1.15))
    return rows
