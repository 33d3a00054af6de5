"""Every option of a training run; the command line is made from this class."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_type_hints

from fairseq_ext.errors import OptionError, choose
from graph.label_graph.label_graph import LOSSES, POSITIONS
from graph.label_graph.metrics import METRICS
from graph.label_graph.model import CELLS
from graph.label_graph.text import PIECES, TOKENIZERS

ARMS = ("soft", "graph", "han")
EMBEDDINGS = ("word2vec", "word2vec-tuned", "learned")
TUNED = "tuned"


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, least: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "least": least})


@dataclass(frozen=True)
class Options:
    """Settings of :func:`graph.label_graph.train.train`; the defaults are the paper's code where its help says so.

    Raises:
        OptionError: a value that is not allowed.
    """

    data: str = field(metadata={"help": "folder with the three splits, or with one JSON file an album"})
    pieces: str = _option("whole", "what is a review in lines of labels TAB text", PIECES)
    tokenizer: str = _option("words", "words: languages with spaces; jieba: Chinese, as the paper", TOKENIZERS)
    max_reviews: int = _option(40, "reviews of a sample that are read (paper: 40)", least=1)
    max_words: int = _option(20, "words of a review that are read (paper: 20)", least=1)
    min_count: int = _option(1, "rarer words of the training texts are unknown (paper: 1)", least=1)
    embedding: str = _option("word2vec", "constant vectors as the paper's; the same, trained on; or random", EMBEDDINGS)
    embedding_dim: int = _option(100, "size of word vectors (paper: 100)", least=1)
    transductive: bool = _option(False, "vocabulary and vectors from the texts of all splits, as the paper's code")

    arm: str = _option("soft", "label graph and soft training; the graph alone; or neither", ARMS)
    graph_position: str = _option(
        "scores", "what the graph mixes: scores before the sigmoid, or what it gives", POSITIONS
    )
    graph_noise: float = _option(0.0, "deviation of noise on the initial identity (paper's code: 0)", least=0)
    temperature: float = _option(0.0, "softmax temperature of the soft targets, 0 for none (paper's code: 0)", least=0)
    ratio1: float = _option(1.0, "weight of the soft loss (paper's code: 1)", least=0)
    ratio2: float = _option(0.0, "reward for the distance of G from the identity, unbounded (paper's code: 0)", least=0)
    no_stop_gradient: bool = _option(False, "let G learn through the soft targets too")
    no_soft_target_clip: bool = _option(False, "let soft targets leave [0, 1], as the paper's code")
    loss: str = _option("bce", "binary loss of every label (paper: bce)", LOSSES)
    log_end: float = _option(0.75, "where the logarithm of --loss encouraging ends", least=0)

    cell: str = _option("lstm", "recurrent cell", tuple(CELLS))
    hidden_size: int = _option(128, "units of each direction (paper's code: 128)", least=1)
    attention_size: int = _option(100, "size of the vectors of reviews and samples (paper's code: 100)", least=1)
    dropout: float = _option(0.0, "on the vectors of reviews and samples (paper's code: 0)", least=0)
    unmasked_attention: bool = _option(False, "attend to padding too, as the code that the paper's builds on")

    epochs: int = _option(100, "passes over the training set (paper's code: 100)", least=1)
    start_eval: int = _option(20, "first epoch that is validated; at the latest the last (paper's code: 20)", least=1)
    batch_size: int = _option(128, "samples of a step (paper's code: 128)", least=1)
    lr: float = _option(1e-3, "step size of Adam (paper's code: 1e-3)", least=0)
    select: str = _option("micro_f1", "validation metric that picks the epoch (our choice)", METRICS)
    threshold: str = _option(
        "0.2", f"a label is predicted above this probability (paper's code: 0.2); {TUNED}: best micro-F1 on validation"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            name, value = flag(item.name), getattr(self, item.name)
            if item.metadata.get("choices"):
                choose(name, value, item.metadata["choices"])
            least = item.metadata.get("least")
            if least is not None and not value >= least:
                raise OptionError(f"{name} must be at least {least}, got {value}")
        for item_name in ("log_end", "dropout"):
            if getattr(self, item_name) > 1:
                raise OptionError(f"{flag(item_name)} must be at most 1, got {getattr(self, item_name)}")
        if self.threshold != TUNED:
            try:
                inside = 0 <= float(self.threshold) < 1
            except ValueError:
                inside = False
            if not inside:
                raise OptionError(f"--threshold must be {TUNED!r} or a number in [0, 1), got {self.threshold!r}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def flag(name: str) -> str:
    """The option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a flag for every field of :class:`Options`."""
    types = get_type_hints(Options)
    for item in fields(Options):
        # Values are checked by Options, so that a program gets the same messages as the command line.
        values = "".join(f" ({', '.join(item.metadata['choices'])})" if item.metadata.get("choices") else "")
        if types[item.name] is bool:
            parser.add_argument(flag(item.name), action="store_true", help=item.metadata["help"])
        elif item.default is MISSING:
            parser.add_argument(flag(item.name), required=True, help=item.metadata["help"])
        else:
            text = f"{item.metadata['help']}{values} [{item.default}]".replace("%", "%%")
            metavar = item.name.upper()
            parser.add_argument(
                flag(item.name), type=types[item.name], default=item.default, metavar=metavar, help=text
            )


def parsed_options(arguments: argparse.Namespace) -> Options:
    return Options(**{item.name: getattr(arguments, item.name) for item in fields(Options)})
