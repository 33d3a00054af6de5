"""What translation recipes have in common."""

from __future__ import annotations

from typing import Any

from fairseq_ext.recipes.recipe import Data
from fairseq_ext.recipes.settings import OURS, Settings, by

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

ADAM = {"optimizer": "adam", "adam_betas": "(0.9, 0.98)", "warmup_init_lr": 1e-7}
SMOOTHED = {"criterion": "label_smoothed_cross_entropy", "label_smoothing": 0.1}
INVERSE_SQRT = {**ADAM, **SMOOTHED, "lr_scheduler": "inverse_sqrt", "warmup_updates": 4000, "fp16": True}
COSINE = {**ADAM, **SMOOTHED, "lr_scheduler": "cosine", "warmup_updates": 10000, "min_lr": 1e-7, "fp16": True}
COMMON = by(
    OURS, task="translation", seed=1, log_format="json", log_interval=100, clip_norm=0.0, weight_decay=0.0, fp16=True
)
EPOCHS = COMMON | by(OURS, keep_last_epochs=10)

ENCOURAGING = by(
    "lancopku/well-classified-examples-are-underestimated, translation scripts",
    criterion="label_smoothed_encouraging_loss",
    label_smoothing=0.1,
    log_end=0.5,
)

_GENERATION = by(OURS, batch_size=128, required_batch_size_multiple=1, remove_bpe="subword_nmt")


def evaluation(source: str, beam: int = 5, lenpen: float = 1.0, **checkpoint: Any) -> Settings:
    """Decoding as ``source`` has it, with every sentence of the test set, also the last few that fill no batch of 8."""
    return by(source, **checkpoint) | by(source, beam=beam, lenpen=lenpen) | _GENERATION


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
