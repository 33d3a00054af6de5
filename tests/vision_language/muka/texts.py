"""Made-up texts whose words tell their class, and tiny untrained models with tokenizers of their own."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

WORDS = {
    "cooking": "soup bread oven salt",
    "garden": "rose seed rain soil",
    "music": "song drum choir tune",
    "sport": "goal team race ball",
    "travel": "train hotel beach map",
}
FILLERS = "the a of and with today some more very old new".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_texts(folder: Path, train: int = 120, valid: int = 25, test: int = 25, seed: int = 0) -> Path:
    """``{train,valid,test}.tsv`` of five classes in turn, of different lengths."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", train), ("valid", valid), ("test", test)):
        lines = []
        for number in range(size):
            label = list(WORDS)[number % len(WORDS)]
            words = generator.choices(WORDS[label].split(), k=3) + generator.choices(FILLERS, k=generator.randint(1, 9))
            generator.shuffle(words)
            lines.append(f"{label}\t{' '.join(words)}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of the words above; ``extra`` tokens come first and so shift all ids."""
    words = [word for group in WORDS.values() for word in group.split()]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *extra, *words, *FILLERS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_config(size: int, layers: int = 2, hidden: int = 16, dropout: float = 0.1) -> BertConfig:
    return BertConfig(
        vocab_size=size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,  # wide enough for so few units to learn within seconds
    )


def write_encoder(
    folder: Path, layers: int = 2, hidden: int = 16, dropout: float = 0.1, extra: tuple[str, ...] = (), seed: int = 0
) -> Path:
    """An encoder without a classifier, as a checkpoint to start from."""
    tokenizer = tiny_tokenizer(extra)
    torch.manual_seed(seed)
    BertModel(tiny_config(len(tokenizer), layers, hidden, dropout)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_classifier(
    folder: Path, labels: list[str], layers: int = 2, hidden: int = 16, extra: tuple[str, ...] = (), seed: int = 0
) -> Path:
    """A classifier that has learned nothing, for tests that only load it."""
    tokenizer = tiny_tokenizer(extra)
    config = tiny_config(len(tokenizer), layers, hidden)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
