"""The figure: the loss curve, and one head of cross-attention with all keys and with the selected ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fairseq_ext
from examples.plotting import colour_of
from examples.quickstart.pipeline import Pipeline
from examples.results.fairseq_log import curve, validation_curve
from fairseq_ext.text import Preparation
from fairseq_ext.training.plotting import LETTERS, name_lines, saved_figure

_LABELS = {"combined": "all combined", "plain": "plain Transformer"}


@torch.no_grad()
def cross_attention(pipeline: Pipeline, index: int, topk: int | None) -> tuple[Tensor, list[str], list[str]]:
    """Last decoder layer, first head, reference as the decoder's input: `(T, S)` weights, target and source pieces.

    `topk=None` is the model as trained; another value replaces its number of selected keys, 0 meaning all.
    """
    from fairseq import checkpoint_utils

    fairseq_ext.register()
    overrides: dict[str, Any] = {"data": str(pipeline.data_dir)}
    if topk is not None:
        overrides["attention_topk"] = topk
    checkpoint = str(pipeline.out / "combined" / "checkpoint_best.pt")
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], arg_overrides=overrides)
    model.eval()
    task.load_dataset("test")
    data = task.dataset("test")
    inputs = data.collater([data[index]])["net_input"]
    encoded = model.encoder(inputs["src_tokens"], src_lengths=inputs["src_lengths"])
    _, extra = model.decoder(inputs["prev_output_tokens"], encoder_out=encoded, alignment_heads=1)
    source = [task.source_dictionary[int(token)] for token in inputs["src_tokens"][0]]
    target = [task.target_dictionary[int(token)] for token in data[index]["target"]]
    return extra["attn"][0][0].float(), target, source


def choose_sentence(pipeline: Pipeline, shortest: int = 16, longest: int = 22) -> int:
    """The first test sentence with enough source pieces for a selection to show and few enough to be legible."""
    encode = Preparation.of(pipeline.data_dir).encoder()
    text = (pipeline.corpus_dir / f"test.{pipeline.settings.source}").read_text(encoding="utf-8")
    lengths = [len(encode(line).split()) + 1 for line in text.splitlines()]
    return min(range(len(lengths)), key=lambda i: (max(shortest - lengths[i], lengths[i] - longest, 0), i))


def plot(pipeline: Pipeline, systems: list[str], path: Path) -> None:
    """Write the figure of the finished run to `path`."""
    index = choose_sentence(pipeline)
    dense, target, source = cross_attention(pipeline, index, topk=0)
    selected, _, _ = cross_attention(pipeline, index, topk=None)
    most = int((selected > 0).sum(dim=-1).max())
    title = "Quickstart: negative log-likelihood (left), and one head of cross-attention (right)"
    with saved_figure(path, (14, 5.4), title) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(0.9, 1, 1))
        for system in systems:
            log, label = pipeline.out / system / "fairseq-train.log", _LABELS[system]
            style: dict[str, Any] = {"color": colour_of(label)}
            left.plot(*zip(*curve(log, "nll_loss", "num_updates"), strict=True), linestyle=":", **style)
            left.plot(*zip(*validation_curve(log), strict=True), marker="o", label=label, **style)
        left.set(title="validation (dots) and training (dotted)", xlabel="update", ylabel="bits per token")
        left.set_ylim(bottom=0)

        top = float(max(dense.max(), selected.max()))
        titles = ("over all keys", f"over the selected keys (at most {most})")
        for axis, weights, heading in zip((middle, right), (dense, selected), titles, strict=True):
            # A key that was not selected has weight exactly zero: it is left white, unlike a small weight.
            image = axis.imshow(
                weights.masked_fill(weights == 0, float("nan")),
                **{"cmap": "YlGnBu", "vmin": -0.12 * top, "vmax": top, "aspect": "auto"},
            )
            axis.grid(visible=False)
            axis.set_title(heading)
            axis.set_xticks(range(len(source)), _legible(source), rotation=90, fontsize=LETTERS)
            axis.set_yticks(range(len(target)), _legible(target), fontsize=LETTERS)
            axis.set_xlabel("source pieces (keys)")
            axis.tick_params(length=0)
        middle.set_ylabel("target piece being predicted")
        label = "attention weight (white: not selected)"
        bar = figure.colorbar(image, ax=(middle, right), shrink=0.75, pad=0.015, label=label)
        bar.ax.set_ylim(0, top)
        name_lines(left)


def _legible(pieces: list[str]) -> list[str]:
    return [piece.replace("▁", "_") for piece in pieces]
