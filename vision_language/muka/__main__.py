"""Merge fine-tuned classifiers into one, from unlabelled texts."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import option
from fairseq_ext.training.program import Program
from vision_language.muka import train
from vision_language.muka.evaluate import diagnose, evaluate, predict
from vision_language.muka.merge import merge
from vision_language.muka.options import AmalgamationOptions, TeacherOptions
from vision_language.muka.synthetic import synthesize

main = Program("vision_language.muka", __doc__)
RESULTS = ("test_accuracy", "valid_accuracy", "valid_loss")


@dataclass(frozen=True, kw_only=True)
class TeacherOutput(Device):
    """Where to train and to save."""

    out: str = option("runs/muka/teacher", "folder of the model and its results")


@dataclass(frozen=True, kw_only=True)
class StudentOutput(Device):
    """Where to train and to save."""

    out: str = option("runs/muka/student", "folder of the model and its results")


@main.shared_command
def train_teacher(options: TeacherOptions, output: TeacherOutput) -> str:
    """Fine-tune a classifier on the texts of its classes."""
    accelerator = make_accelerator(options.mixed_precision, output.device, unused_parameters=True)
    return train.train_teacher(options, output.out, accelerator).report(*RESULTS)


@main.shared_command
def amalgamate(options: AmalgamationOptions, output: StudentOutput) -> str:
    """Train a student that knows the classes of all teachers."""
    accelerator = make_accelerator(options.mixed_precision, output.device, unused_parameters=True)
    return train.amalgamate(options, output.out, accelerator).report(*RESULTS)


main.command(merge)
for command in (evaluate, diagnose, predict):
    main.shared_command(command)
main.command(synthesize)


if __name__ == "__main__":
    main()
