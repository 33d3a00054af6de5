"""A trial before the training of everything that could fail after hours: reading texts, a step, saving, loading."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fairseq_ext.training.errors import CheckpointError, OptionError, first_line
from fairseq_ext.training.pretrained import loading
from vision_language.muka.models import Classifier, load_classifier, save_classifier
from vision_language.muka.uncertainty import active_dropout

__all__ = ["prove_reading", "prove_training", "set_attention"]


def _batches(classifier: Classifier, texts: Sequence[str], max_length: int) -> list[dict[str, Tensor]]:
    """The longest text with the shortest, whose padding the model must bear, and the shortest alone."""
    tokens = classifier.tokens([max(texts, key=len), min(texts, key=len)], max_length)
    return [tokens.batch([0, 1]), tokens.batch([1])]


def prove_reading(
    classifier: Classifier,
    texts: Sequence[str],
    max_length: int = 0,
    *,
    hidden_states: bool = False,
    dropout: float | None = None,
) -> None:
    """Refuse a classifier that cannot read ``texts``; it is left in evaluation mode.

    Args:
        hidden_states: they are needed too, a vector of its hidden size for each token.
        dropout: of the Monte-Carlo passes, 0 for each layer's own; refused where two of them are alike. Default: no
            passes.

    Raises:
        CheckpointError: names the folder and what went wrong.
        OptionError: more tokens than the model has positions for, or passes without dropout.
    """
    model, folder = classifier.model.eval(), classifier.folder
    wanted = {"output_hidden_states": True} if hidden_states else {}
    shortest = []
    for batch in _batches(classifier, texts, max_length):
        rows = batch["input_ids"].size()
        with loading(folder, "cannot read the texts"), torch.no_grad():
            output = model(**batch, **wanted)
            shape, classes = tuple(output.logits.shape), len(classifier.labels)
        if shape != (rows[0], classes):
            raise CheckpointError(f"{folder}: has {classes} classes, but its output for {rows[0]} texts is {shape}")
        if not output.logits.isfinite().all():
            raise CheckpointError(f"{folder}: its outputs are not finite")
        shortest.append(output.logits[-1])
        states = (getattr(output, "hidden_states", None) or ()) if hidden_states else ()
        shapes = {tuple(state.shape) for state in states}
        if hidden_states and (len(states) < 2 or shapes != {(*rows, classifier.hidden_size)}):
            raise CheckpointError(f"{folder}: a {type(model).__name__} has no hidden state for each token and layer")
    padded, alone = shortest
    if (padded - alone).abs().max() > 0.3 * padded.abs().max():
        pad_token_id, tokenizer = model.config.get_text_config().pad_token_id, classifier.tokenizer
        raise CheckpointError(
            f"{folder}: its output for a text depends on the padding: padding_side {tokenizer.padding_side}, "
            f"pad_token_id {tokenizer.pad_token_id}, in config.json {pad_token_id}"
        )
    if dropout is not None:
        _prove_dropout(classifier, batch, dropout)


def _prove_dropout(classifier: Classifier, batch: dict[str, Tensor], dropout: float) -> None:
    """Some models read their dropout where no option reaches it, so what counts is whether the passes differ."""
    folder = classifier.folder
    with loading(folder, "cannot read the texts with dropout"), torch.no_grad(), torch.random.fork_rng():
        with active_dropout(classifier.model, dropout or None):
            passes = [classifier.model(**batch).logits for _ in range(3)]
    if all(torch.equal(passes[0], other) for other in passes[1:]):
        way = "its dropout cannot be set: " if dropout else "set one with --teacher-dropout 0.1, or "
        raise OptionError(
            f"{folder}: a model without dropout, whose Monte-Carlo passes cannot differ; {way}"
            "use one pass without, --no-mc"
        )


def set_attention(classifier: Classifier, implementation: str) -> None:
    """Let the model compute its self-attention so; ``auto`` is sdpa where it has it.

    Raises:
        OptionError: one that it does not have.
    """
    model: PreTrainedModel = classifier.model
    try:
        model.set_attn_implementation("sdpa" if implementation == "auto" else implementation)
    except Exception as error:  # transformers raises several types
        if implementation != "auto":
            reason = first_line(error)
            raise OptionError(f"--attn-implementation {implementation}: {classifier.folder}: {reason}") from error


def prove_training(classifier: Classifier, texts: Sequence[str], max_length: int, out: str | Path) -> None:
    """Save a classifier to ``out/trial``, read it back, let that copy read and learn, and remove it.

    The weights, and torch's generator, stay as they are.

    Raises:
        CheckpointError: it cannot read the texts, be saved or trained, or is not the same when read back.
    """
    prove_reading(classifier, texts, max_length)
    source, folder = classifier.folder, Path(out) / "trial"
    try:
        with torch.random.fork_rng():
            with loading(source, "cannot be saved and read back"):
                save_classifier(classifier, folder)
                copy = load_classifier(folder)
            if changed := _changed(classifier, copy, _batches(classifier, texts, max_length)[0]):
                raise CheckpointError(
                    f"{source}: a {type(copy.model).__name__} is not the same when saved and read back: {changed}"
                )
            with loading(source, "cannot be trained on the texts"):
                copy.model.train()
                for batch in _batches(copy, texts, max_length):
                    copy.model(**batch).logits.sum().backward()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _changed(classifier: Classifier, copy: Classifier, batch: dict[str, Tensor]) -> str:
    """The weights that differ, or that outputs do; empty where nothing does."""
    before, after = classifier.model.state_dict(), copy.model.state_dict()
    lost = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    with torch.no_grad():
        first, second = classifier.model(**batch).logits, copy.model(**batch).logits
    return ", ".join(lost[:3]) or ("" if torch.allclose(first, second, rtol=1e-3, atol=1e-3) else "other outputs")
