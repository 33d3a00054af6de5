"""What translation recipes have in common."""

from __future__ import annotations

from typing import Any

from fairseq_ext.recipes.recipe import Data
from fairseq_ext.recipes.sources import ENCOURAGING_SCRIPTS
from fairseq_ext.training.sources import OURS, SourcedValues, by

__all__ = [
    "ADAM",
    "AVERAGED",
    "COMMON",
    "COSINE",
    "ENCOURAGING",
    "EPOCHS",
    "INVERSE_SQRT",
    "SMOOTHED",
    "data_set",
    "evaluation",
]

# Values without sources: code that writes by(SOURCE, **...) claims that the source has each of them.
ADAM = {"optimizer": "adam", "adam_betas": "(0.9, 0.98)"}
SMOOTHED = {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1}
INVERSE_SQRT = {**ADAM, **SMOOTHED, "lr_scheduler": "inverse_sqrt", "warmup_updates": 4000}
COSINE = {**ADAM, **SMOOTHED, "lr_scheduler": "cosine", "warmup_updates": 10000, "min_lr": 1e-7}
COMMON = by(OURS, task="translation", seed=1, log_format="json", log_interval=100) | by(
    OURS, clip_norm=0.0, weight_decay=0.0, warmup_init_lr=1e-7, fp16=True
)
EPOCHS = COMMON | by(OURS, keep_last_epochs=10)

ENCOURAGING = by(
    ENCOURAGING_SCRIPTS,
    criterion="label_smoothed_encouraging_loss",
    label_smoothing=0.1,
    log_end=0.5,
)

_GENERATION = by(OURS, beam=5, lenpen=1.0, batch_size=128, required_batch_size_multiple=1, remove_bpe="subword_nmt")


def evaluation(source: str, **stated: Any) -> SourcedValues:
    """Decoding with the values that ``source`` states; the others are our choice.

    Every sentence of the test set is decoded, also the last few that fill no batch of 8.
    """
    return _GENERATION | by(source, **stated)


AVERAGED = evaluation(OURS, average=10)


def data_set(name: str, target: str, score: str = "", prepare: str = "prepare") -> Data:
    """The set of ``examples/translation/NAME``, with options of ``examples.translation.score``."""
    return Data(
        name,
        folder=f"data-bin/{name}{prepare.removeprefix('prepare').replace('-', '_')}",
        prepare=f"examples/translation/{name}/recipe.sh {prepare} TEXT {{data}}",
        score=f"python -m examples.translation.score {{save}}/generate.txt --reference {{data}}/text/test.{target} "
        f"--json {{save}}/score.json{score}",
    )
