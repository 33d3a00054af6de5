"""Claims: a student learns from its teachers at the cost of plain fine-tuning, and many dropout passes run as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.timing import Function, Row, generator, rate_row, time_row
from vision_language.muka.baselines import uhc_loss, vanilla_kd_loss
from vision_language.muka.feature_amalgamation import CommonFeatureLearning, LayerwiseAmalgamation
from vision_language.muka.objectives import FeatureObjective, Objective
from vision_language.muka.targets import amalgamation_loss, amalgamation_targets, margin_weights
from vision_language.muka.uncertainty import mc_dropout_probabilities, teacher_scores

TEACHERS, CLASSES = 2, 10  # of each teacher
BATCH, STEPS, LENGTH, PASSES = 16, 2, 64, 16


def classifier(quick: bool, classes: int, layers: int = 3) -> BertForSequenceClassification:
    """A classifier with the width of MiniLM-L6 and random weights."""
    hidden = 24 if quick else 384
    config = BertConfig(
        vocab_size=200 if quick else 30_522,
        hidden_size=hidden,
        num_hidden_layers=2 if quick else layers,
        num_attention_heads=2 if quick else 12,
        intermediate_size=4 * hidden,
    )
    config.num_labels = classes
    return BertForSequenceClassification(config).eval()


def texts(quick: bool, count: int) -> dict[str, Tensor]:
    """Random tokens; a text has 40 to 64, so that a batch holds some padding."""
    length = 8 if quick else LENGTH
    random = generator(1)
    ids = torch.randint(1, 200, (count, length), generator=random)
    lengths = torch.randint(length * 5 // 8, length + 1, (count, 1), generator=random)
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def epoch(objective: Objective, batch: dict[str, Tensor], signals: Sequence[Tensor]) -> Function:
    """Forward, loss, backward, AdamW for each batch."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-5)
    objective.train()

    def run() -> None:
        for rows in torch.arange(len(batch["input_ids"])).split(BATCH):
            part = {name: value[rows] for name, value in batch.items()}
            objective(part, [signal[rows] for signal in signals]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def training_rows(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    batch = texts(quick, BATCH * (1 if quick else STEPS))
    teachers = [classifier(quick, CLASSES) for _ in range(TEACHERS)]
    with torch.no_grad():
        logits = [teacher(**batch).logits for teacher in teachers]
    scores = torch.stack([teacher_scores(each.softmax(-1)[None]) for each in logits], -1)
    labels = torch.randint(TEACHERS * CLASSES, (len(scores),))

    def student() -> BertForSequenceClassification:
        torch.manual_seed(0)
        return classifier(quick, TEACHERS * CLASSES)

    def muka(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return amalgamation_loss(logits, target, weight=weight)

    def vkd(logits: Tensor, *teacher_logits: Tensor) -> Tensor:
        return vanilla_kd_loss(logits, teacher_logits)

    def uhc(logits: Tensor, *teacher_logits: Tensor) -> Tensor:
        return uhc_loss(logits, teacher_logits)

    sizes = [teacher.config.hidden_size for teacher in teachers]
    width, depth = sizes[0], teachers[0].config.num_hidden_layers
    targets = [amalgamation_targets(logits, scores), margin_weights(scores)]
    plain = epoch(Objective(student(), F.cross_entropy), batch, [labels])
    stored = "on stored outputs of the teachers"  # which cost passes of their own, once, and MUKA's scores K of dropout
    cases = (
        (f"MUKA, soft with margin, {stored}", Objective(student(), muka), targets, 1.05),
        (f"vanilla KD, {stored}", Objective(student(), vkd), logits, 1.05),
        (f"UHC, {stored}", Objective(student(), uhc), logits, 1.05),
        ("DFA", FeatureObjective(student(), vkd, teachers, LayerwiseAmalgamation(width, sizes, depth)), logits, None),
        ("CFL", FeatureObjective(student(), vkd, teachers, CommonFeatureLearning(width, sizes)), logits, None),
    )
    case = f"{len(labels)} texts of up to {batch['input_ids'].size(1)} tokens, {depth} layers"
    return [
        time_row(
            f"epoch of {name} / fine-tuning with labels, {case}",
            epoch(objective, batch, signals),
            plain,
            pairs=1 if quick else 7,
            target=target,
        )
        for name, objective, signals, target in cases
    ]


def scoring_rows(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    teacher, rows = classifier(quick, CLASSES), []
    for size in (2,) if quick else (1, 4, 16):
        batch = texts(quick, size)

        def together(batch: dict[str, Tensor] = batch) -> Tensor:
            return mc_dropout_probabilities(teacher, batch, PASSES)

        def one_by_one(batch: dict[str, Tensor] = batch) -> Tensor:
            return torch.cat([mc_dropout_probabilities(teacher, batch, 1) for _ in range(PASSES)])

        rows.append(
            rate_row(
                f"{PASSES} dropout passes as one batch / one after another, {size} texts",
                together,
                one_by_one,
                items=size,
                unit="texts/s",
                pairs=1 if quick else 5,
            )
        )
    return rows


def run(quick: bool) -> list[Row]:
    return training_rows(quick) + scoring_rows(quick)
