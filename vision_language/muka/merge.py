r"""Merges teachers by their weights: without texts and training, but only teachers of one shape.

The average (Mitchell Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482) and task arithmetic (Gabriel Ilharco
et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv:2212.04089) of the encoders

.. math:: \frac{1}{T} \sum_t \theta_t \qquad \text{and} \qquad \theta_0 + \lambda \sum_t (\theta_t - \theta_0)

with the teachers' output layers side by side, as their classes differ (our choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import writing_to
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.progress import reporting, say
from vision_language.muka.models import Classifier, build_classifier, load_classifiers, save_classifier
from vision_language.muka.targets import union_of_labels

__all__ = ["MergeOptions", "merge", "merged_classifier"]

RULES = ("average", "task-arithmetic")
AVERAGE = {"rule": ("average",)}


@dataclass(frozen=True, kw_only=True)
class MergeOptions(OptionSet):
    """What is merged, how, and where to.

    Raises:
        OptionError: fewer than two teachers, or no base where it is needed.
    """

    teachers: tuple[str, ...] = option(help="folders of two or more classifiers of one architecture, of other classes")
    rename: tuple[str, ...] = option((), "another name for a class, OLD=NEW; of the second teacher only, 2:OLD=NEW")
    rule: str = option("average", "rule by which the encoders' weights are merged", RULES)
    base: str = option("", "folder of the pre-trained model that all teachers started from", idle=AVERAGE)
    scale: float = option(0.4, "factor of the sum of the task vectors (paper: tuned)", above=0, idle=AVERAGE)
    out: str = option("runs/muka/merged", "folder of the merged classifier; it must not hold a model yet")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.teachers) < 2:
            raise OptionError(f"--teachers: at least two are needed, got {len(self.teachers)}")
        if self.rule == "task-arithmetic" and not self.base:
            raise OptionError("--base: --rule task-arithmetic needs the model that the teachers started from")


def merge(options: MergeOptions) -> str:
    """Merge teachers by their weights, without texts and without training."""
    out = Path(options.out)
    if (out / "config.json").exists():
        raise OptionError(f"--out: {out} holds a model; choose another folder")
    merged = merged_classifier(load_classifiers(options.teachers, options.rename), options.base, options.scale)
    with writing_to(out):
        save_classifier(merged, out)
    return f"{len(merged.labels)} classes: {out}"


@torch.no_grad()
def merged_classifier(teachers: Sequence[Classifier], base: str | Path = "", scale: float = 0.4) -> Classifier:
    r"""One classifier of all classes, its encoder the average of the teachers', or by task arithmetic from ``base``.

    Layers after the encoder that the classes do not change, such as RoBERTa's, are averaged, and so are encoder
    weights that the base lacks, such as the pooler of a masked language model; a line says so.

    Args:
        teachers: of one architecture, depth and tokenizer, whose classes all differ.
        base: folder of the pre-trained model :math:`\theta_0`. Default: none, which averages.
        scale: :math:`\lambda`. Default 0.4 (our choice; the paper tunes it). With 1/T it is the average.

    Raises:
        OptionError: teachers that cannot be merged so; a base of another shape.
    """
    first = teachers[0]
    union = union_of_labels([teacher.labels for teacher in teachers])
    if len(union) < sum(len(teacher.labels) for teacher in teachers):
        raise OptionError("--teachers: a class of several teachers has several output layers, which no merge makes one")
    states = [teacher.model.state_dict() for teacher in teachers]
    with torch.random.fork_rng(), reporting(quiet=True):  # new output layers, whose weights are replaced below
        merged = build_classifier(first.folder, union.names)
        pretrained = build_classifier(base, union.names) if base else None
    origin = pretrained.model.state_dict() if pretrained else {}
    wanted, prefix = merged.model.state_dict(), f"{first.model.base_model_prefix}."
    for teacher, state in zip(teachers[1:], states[1:], strict=True):
        unlike = _unlike(states[0], state, prefix) or _unlike(state, states[0], prefix)
        if not unlike and teacher.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            unlike = "their tokenizers"
        if unlike:
            raise OptionError(
                f"--teachers: {first.folder} and {teacher.folder} differ in {unlike}; weights are merged only where "
                "architecture, depth and tokenizer are the same"
            )
    if base and (unlike := _unlike(states[0], origin, prefix)):
        raise OptionError(f"--base: {base} is not what {first.folder} started from: they differ in {unlike}")

    averaged = {name for name in pretrained.new if name.startswith(prefix)} if pretrained else set()
    if averaged:
        say(f"--base: {base} has no {', '.join(sorted(averaged))}; the average is taken")

    def of_name(name: str) -> Tensor:
        values = [state[name] for state in states]
        if values[0].shape != wanted[name].shape:
            return torch.cat(values)
        if not values[0].is_floating_point():
            return values[0]
        arithmetic = bool(base) and name.startswith(prefix) and name not in averaged
        start = origin[name] if arithmetic else torch.zeros_like(values[0])
        factor = scale if arithmetic else 1 / len(values)
        return start + factor * sum(value - start for value in values)

    merged.model.load_state_dict({name: of_name(name) for name in wanted})
    return replace(merged, model=merged.model.eval())


def _unlike(first: dict[str, Tensor], second: dict[str, Tensor], prefix: str) -> str:
    """The first weight of an encoder that another one lacks, or has in another shape; empty where there is none."""
    own = {name: value.shape for name, value in first.items() if name.startswith(prefix)}
    return next((name for name, shape in own.items() if name not in second or second[name].shape != shape), "")
