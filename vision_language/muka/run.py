"""One training in one output folder: resumed, tested, saved as a model of transformers, and recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.runs import Experiment
from fairseq_ext.training.settings import Settings
from vision_language.muka.cache import predict_logits
from vision_language.muka.data import Texts, gold_ids
from vision_language.muka.diagnostics import accuracy_by_teacher
from vision_language.muka.loop import fit
from vision_language.muka.models import Classifier, save_classifier
from vision_language.muka.objectives import Objective
from vision_language.muka.options import TrainingOptions
from vision_language.muka.targets import LabelUnion
from vision_language.muka.trial import prove_training, set_attention
from vision_language.pretrained import fingerprint

__all__ = ["Run", "accuracy"]

PACKAGES = ("transformers", "tokenizers", "accelerate")


def accuracy(logits: Tensor, gold: Tensor) -> float:
    """Share of the texts whose class has the largest logit."""
    return float((logits.argmax(-1) == gold).double().mean())


class Run:
    """One training with one output folder: what is finished, and what it must not mix with."""

    def __init__(
        self, options: TrainingOptions, splits: Mapping[str, Texts], folders: Sequence[str], out: str | Path
    ) -> None:
        self.options, self.splits, self.out = options, splits, Path(out)
        inputs = {folder: fingerprint(folder) for folder in folders if Path(folder).is_dir()}
        inputs |= {split: texts.digest() for split, texts in splits.items()}
        self.settings = Settings.of(options, inputs=inputs)
        self.name = f"seed{options.seed}"
        self.experiment = Experiment(out, self.settings, PACKAGES)
        mine = self.experiment.runs or (self.out / "checkpoint.pt").exists()
        if (self.out / "config.json").exists() and not mine:
            raise OptionError(f"--out: {out} holds another model; choose another folder")

    @property
    def finished(self) -> bool:
        return self.name in self.experiment.runs

    def prepare(self, classifier: Classifier, accelerator: Accelerator) -> None:
        """Before any work: a model that could not be trained and saved is refused.

        Raises:
            InputError: as :func:`~vision_language.muka.trial.prove_training`.
        """
        set_attention(classifier, self.options.attn_implementation)
        if accelerator.is_main_process and not (self.out / "checkpoint.pt").exists():
            texts = [text for part in self.splits.values() for text in part.texts]
            prove_training(classifier, texts, self.options.max_length, self.out)
        accelerator.wait_for_everyone()

    def train(
        self,
        classifier: Classifier,
        objective: Objective,
        signals: Mapping[str, Sequence[Tensor]],
        accelerator: Accelerator,
        known: LabelUnion | None = None,
        extra: Mapping[str, float] | None = None,
        **fitting: Any,
    ) -> None:
        """Fit, test, save, and record the run.

        Args:
            signals: of the training and validation texts, for the loss.
            known: the teachers' classes, for the test accuracy on the classes of each.
            extra: further figures of the record.
            fitting: as :func:`~vision_language.muka.loop.fit`.
        """
        start, options, batch_size = time.perf_counter(), self.options, self.options.eval_batch_size
        labelled = {split: texts for split, texts in self.splits.items() if texts.labels is not None}
        gold = {split: gold_ids(texts, classifier.labels) for split, texts in labelled.items()}
        tokens = {split: classifier.tokens(texts.texts, options.max_length) for split, texts in self.splits.items()}

        def logits(split: str) -> Tensor:
            return predict_logits(classifier.model, tokens[split], batch_size, accelerator)

        def validate() -> dict[str, float]:
            found = logits("valid")
            entry = {"loss": float(objective.logit_loss(found, *signals["valid"]))}
            return entry | ({"accuracy": accuracy(found, gold["valid"])} if "valid" in gold else {})

        record = fit(
            objective,
            tokens["train"],
            signals["train"],
            validate,
            options,
            accelerator,
            self.out,
            settings=self.settings,
            **fitting,
        )
        if "test" in gold:
            found = logits("test")
            record = {"test_accuracy": accuracy(found, gold["test"])} | record
            if known is not None:
                record["test_accuracy_by_teacher"] = accuracy_by_teacher(found.argmax(-1), gold["test"], known)
        counts = {"train_texts": len(tokens["train"]), "processes": accelerator.num_processes}
        record |= {"classes": len(classifier.labels), **counts, **(extra or {})}
        if accelerator.is_main_process:
            save_classifier(classifier, self.out)
            self.experiment.add(self.name, record | {"seconds": time.perf_counter() - start})
            for file in ("checkpoint.pt", "best.pt"):
                (self.out / file).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
