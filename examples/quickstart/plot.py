"""The picture: the loss curve, and one head of cross-attention with all keys and with the selected ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import fairseq_ext

from .pipeline import Pipeline, log_records

_COLOURS = {"combined": "#0b6e99", "plain": "#c0562b"}
_LABELS = {"combined": "all methods combined", "plain": "plain Transformer"}


def curve(log: Path, kind: str, loss: str, step: str) -> tuple[list[int], list[float]]:
    """Updates and losses of one kind of record. A resumed run logs some updates twice: the later record counts."""
    with log.open(encoding="utf-8") as lines:
        points = {int(r[step]): float(r[loss]) for r in log_records(lines) if r["kind"] == kind}
    updates = sorted(points)
    return updates, [points[update] for update in updates]


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
    path = pipeline.corpus_dir / f"test.spm.{pipeline.settings.source}"
    lengths = [len(line.split()) + 1 for line in path.read_text(encoding="utf-8").splitlines()]
    return min(range(len(lengths)), key=lambda i: (max(shortest - lengths[i], lengths[i] - longest, 0), i))


def plot(pipeline: Pipeline, systems: list[str], path: Path) -> None:
    """Write the picture of the finished run to `path`."""
    # Importing fairseq opens the root logger: without this, matplotlib's font search would fill the screen.
    logging.disable(logging.INFO)
    index = choose_sentence(pipeline)
    dense, target, source = cross_attention(pipeline, index, topk=0)
    selected, _, _ = cross_attention(pipeline, index, topk=None)
    most = int((selected > 0).sum(dim=-1).max())

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(17, 6), width_ratios=(1.05, 1, 1), layout="constrained", dpi=110
    )
    for system in systems:
        log, colour = pipeline.out / system / "fairseq-train.log", _COLOURS[system]
        label = _LABELS[system]
        left.plot(
            *curve(log, "train_inner", "nll_loss", "num_updates"), color=colour, alpha=0.45, label=f"{label}: train"
        )
        valid = curve(log, "valid", "valid_nll_loss", "valid_num_updates")
        left.plot(*valid, color=colour, marker="o", markersize=4, label=f"{label}: validation")
    left.set(title="Learning curve", xlabel="update", ylabel="negative log-likelihood (bits per token)", ylim=(0, None))
    left.grid(alpha=0.25)
    left.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)

    top = float(max(dense.max(), selected.max()))
    titles = ("Cross-attention over all keys", f"Cross-attention over the selected keys (at most {most})")
    for axis, weights, title in zip((middle, right), (dense, selected), titles, strict=True):
        # A key that was not selected has weight exactly zero: it is left white, unlike a small weight.
        image = axis.imshow(
            weights.masked_fill(weights == 0, float("nan")), cmap="YlGnBu", vmin=-0.12 * top, vmax=top, aspect="auto"
        )
        axis.set_title(title)
        axis.set_xticks(range(len(source)), [p.replace("▁", "_") for p in source], rotation=90, fontsize=8)
        axis.set_yticks(range(len(target)), [p.replace("▁", "_") for p in target], fontsize=8)
        axis.set_xlabel("source pieces (keys)")
        axis.tick_params(length=0)
    middle.set_ylabel("target piece being predicted")
    bar = figure.colorbar(
        image, ax=(middle, right), shrink=0.75, pad=0.015, label="attention weight (white: not selected)"
    )
    bar.ax.set_ylim(0, top)
    figure.savefig(path)
    plt.close(figure)
