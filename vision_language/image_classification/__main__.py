"""Image classification with the encouraging loss: long tails, out-of-distribution detection, adversarial attacks."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.compare import compare
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import option
from fairseq_ext.training.program import Program
from vision_language.image_classification import train as training
from vision_language.image_classification.evaluate import attack, evaluate, ood
from vision_language.image_classification.options import Options
from vision_language.image_classification.plot import plot
from vision_language.image_classification.recipes import recipe
from vision_language.image_classification.synthetic import synthesize

main = Program("vision_language.image_classification", __doc__)
RESULTS = (
    *("test_accuracy", "last_test_accuracy", "test_nll", "test_margin", "test_ece"),
    *("test_many", "test_medium", "test_few", "test_head", "test_middle", "test_tail"),
)


@dataclass(frozen=True, kw_only=True)
class Output(Device):
    """Runs of the experiment; finished ones are not run again."""

    out: str = option("runs/images", "folder of results and models")
    runs: int = option(1, "number of seeds, from --seed on", least=1)


@main.shared_command
def train(options: Options, output: Output) -> str:
    """Train with one or more seeds; a command that was killed is resumed."""
    return training.run(options, output.out, output.runs, output.device).report(*RESULTS)


for command in (evaluate, ood, attack, compare, plot, recipe, synthesize):
    main.command(command)


if __name__ == "__main__":
    main()
