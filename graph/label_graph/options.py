"""Every option of a training run; the command line is made from this class."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import OptionSet, option
from graph.label_graph.encoder import DTYPES, POOLINGS
from graph.label_graph.label_graph import LOSSES, POSITIONS
from graph.label_graph.metrics import METRICS
from graph.label_graph.model import CELLS, NO_CELL
from graph.label_graph.text import PIECES, TOKENIZERS

__all__ = ["TUNED", "Options", "fixed_threshold"]

ARMS = ("soft", "graph", "han")
EMBEDDINGS = ("word2vec", "word2vec-tuned", "learned")
TUNED = "tuned"
NO_GRAPH = {"arm": ("han",)}
NOT_SOFT = {"arm": ("graph", "han")}
NO_ENCODER = {"encoder": ("",)}


def fixed_threshold(text: str, also: str = "") -> float:
    """The number that a ``--threshold`` holds.

    Args:
        text: the option's value.
        also: what the message names as allowed beside a number.

    Raises:
        OptionError: ``text`` is no number, or not in [0, 1).
    """
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise OptionError(f"--threshold must be {also}a number in [0, 1), got {text!r}")


@dataclass(frozen=True, kw_only=True)
class Options(OptionSet):
    """Settings of :func:`graph.label_graph.train.train`; the defaults are the paper's code where its help says so.

    Raises:
        OptionError: a value that is not allowed.
    """

    data: str = option(help="folder with the three splits, or with one JSON file an album", outcome=False)
    pieces: str = option("whole", "what a text is cut into, each read as a review", PIECES)
    tokenizer: str = option(
        "words", "how a review is cut into words; words: at spaces; jieba: Chinese, as the paper's code", TOKENIZERS
    )
    max_reviews: int = option(40, "most reviews read per sample, empty ones not counted (paper's code: 40)", least=1)
    max_words: int = option(20, "most words read per review (paper's code: 20)", least=1)
    min_count: int = option(
        1, "fewest occurrences of a word in the training texts; rarer words are unknown (paper's code: 1)", least=1
    )
    embedding: str = option(
        "word2vec", "word vectors: constant as in the paper's code; the same, trained on; or random", EMBEDDINGS
    )
    embedding_dim: int = option(100, "size of word vectors (paper's code: 100)", least=1)
    transductive: bool = option(False, "learn vocabulary and vectors from the texts of all splits, as the paper's code")

    encoder: str = option(
        "", "folder of a Hugging Face encoder whose states are read in the place of word vectors", outcome=False
    )
    num_layers: int = option(0, "layers of the encoder that are used, the first; 0: all", least=0, idle=NO_ENCODER)
    encoder_pooling: str = option(
        "mean", "what is read of a review's encoder states: their mean, or each of them", POOLINGS, idle=NO_ENCODER
    )
    encoder_precision: str = option(
        "float32", "number format of the encoder's forward pass", tuple(DTYPES), idle=NO_ENCODER
    )
    cache: str = option(
        "", "folder of the encoder's states, for runs to share (default: OUT/cache)", outcome=False, idle=NO_ENCODER
    )

    arm: str = option("soft", "parts of the method: label graph and soft training; the graph alone; or neither", ARMS)
    graph_position: str = option(
        "scores", "what the graph mixes: scores before the sigmoid, or what it gives", POSITIONS, idle=NO_GRAPH
    )
    graph_noise: float = option(
        0.0, "deviation of noise on the initial identity (paper's code: 0)", least=0, idle=NO_GRAPH
    )
    temperature: float = option(
        0.0, "softmax temperature of the soft targets, 0 for none (paper's code: 0)", least=0, idle=NOT_SOFT
    )
    ratio1: float = option(1.0, "weight of the soft loss (paper's code: 1)", above=0, idle=NOT_SOFT)
    ratio2: float = option(
        0.0, "reward for the distance of G from the identity, unbounded (paper's code: 0)", least=0, idle=NO_GRAPH
    )
    no_stop_gradient: bool = option(False, "let G learn through the soft targets too", idle=NOT_SOFT)
    no_soft_target_clip: bool = option(
        False, "let soft targets leave [0, 1] (no released option keeps them in it)", idle=NOT_SOFT
    )
    loss: str = option("bce", "binary loss of every label; bce is our reading of the paper", LOSSES)
    log_end: float = option(
        0.75, "end of the logarithm of --loss encouraging", least=0, most=1, idle={"loss": ("bce", "halted-focal")}
    )

    cell: str = option("lstm", "recurrent cell; none: attention alone", (*CELLS, NO_CELL))
    hidden_size: int = option(128, "units of each direction (paper's code: 128)", least=1, idle={"cell": (NO_CELL,)})
    attention_size: int = option(100, "size of the vectors of reviews and samples (paper's code: 100)", least=1)
    dropout: float = option(0.0, "dropout on the vectors of reviews and samples (paper's code: 0)", least=0, below=1)
    word_dropout: float = option(
        0.0, "share of the words whose vectors are zero in a training step (our addition)", least=0, below=1
    )
    unmasked_attention: bool = option(False, "attend to padding too, as the code that the paper's builds on")

    epochs: int = option(100, "passes over the training set (paper's code: 100)", least=1)
    start_eval: int = option(20, "first epoch that is validated; at the latest the last (paper's code: 20)", least=1)
    batch_size: int = option(128, "samples of a step (paper's code: 128)", least=1)
    lr: float = option(1e-3, "step size of Adam (paper's code: 1e-3)", above=0)
    select: str = option("micro_f1", "validation metric that picks the epoch (our choice)", METRICS)
    threshold: str = option(
        "0.2", f"a label is predicted above this probability (paper's code: 0.2); {TUNED}: best micro-F1 on validation"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold != TUNED:
            fixed_threshold(self.threshold, f"{TUNED!r} or ")
        if self.temperature:
            self.refuse_idle(f"with --temperature {self.temperature:g}", "no_soft_target_clip")
        if self.encoder:
            self.refuse_idle("with --encoder", "tokenizer", "min_count", "embedding", "embedding_dim", "transductive")
            if self.unmasked_attention:
                raise OptionError(
                    "--unmasked-attention: not with --encoder, whose states are padded to the longest text beside "
                    "them: the labels of a text would depend on the others"
                )
        if self.start_eval > self.epochs:
            self.refuse_idle(f"with --epochs {self.epochs}", "start_eval")
