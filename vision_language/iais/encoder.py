"""The retriever and tokenizer that training starts from, and their folder on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from fairseq_ext.training.flags import Device
from fairseq_ext.training.options import SPLITS, option
from fairseq_ext.training.pretrained import load_tokenizer, read_weights
from vision_language.iais.data import Collator, RegionData, read_regions, read_splits
from vision_language.iais.model import RegionRetriever, RegionRetrieverConfig
from vision_language.iais.options import SCRATCH, Options

__all__ = ["ModelOptions", "ScoringOptions", "build", "learn_tokenizer", "load"]

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

# Otherwise reading a tokenizer from a retriever's folder warns of an unknown model.
AutoConfig.register(RegionRetrieverConfig.model_type, RegionRetrieverConfig, exist_ok=True)


def learn_tokenizer(captions: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-cased WordPiece tokenizer of the most frequent words, and of all characters to spell the other words.

    The same captions always give the same vocabulary.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL.values(), *letters, *(f"##{letter}" for letter in letters)]
    ranked = sorted(words, key=lambda word: (-words[word], word))
    pieces += [word for word in ranked if len(word) > 1][: max(vocab_size - len(pieces), 0)]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(numbers, unk_token=SPECIAL["unk_token"]))
    backend.normalizer, backend.pre_tokenizer = normalizer, splitter
    frame = [(SPECIAL[name], numbers[SPECIAL[name]]) for name in ("sep_token", "cls_token")]
    backend.post_processor = processors.BertProcessing(*frame)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def build(options: Options, data: RegionData) -> tuple[RegionRetriever, PreTrainedTokenizerBase]:
    """The untrained retriever of ``options``, drawn from torch's generator, and its tokenizer.

    Args:
        options: the encoder and its sizes.
        data: the training split. Its captions make the vocabulary of an encoder from scratch. The model reads the
            features of its regions where they have any, else their class labels.

    Raises:
        OptionError: the encoder is no folder, or has too few layers or positions.
        CheckpointError: the encoder or the UNITER checkpoint cannot be used.
        DataError: the regions have neither features nor labels.
    """
    labels = None if data.feature_size else data.labels
    if not data.feature_size and not labels:
        raise DataError(f"--data {options.data}: regions have neither features nor labels with a categories.txt")
    scratch = options.encoder == SCRATCH
    tokenizer: PreTrainedTokenizerBase
    if scratch:
        tokenizer = learn_tokenizer(data.captions, options.vocab_size)
    elif not Path(options.encoder).is_dir():
        raise OptionError(f"--encoder: {options.encoder} is neither {SCRATCH!r} nor a folder")
    model = RegionRetriever.from_encoder(
        _scratch_config(options, len(tokenizer)) if scratch else options.encoder,
        region_feature_size=data.feature_size,
        region_labels=labels,
        num_hidden_layers=options.num_layers or None,
    )
    if not scratch:
        tokenizer = load_tokenizer(options.encoder, model.config.vocab_size)
    positions = model.config.max_position_embeddings
    if options.max_text_length + 2 > positions:
        raise OptionError(
            f"--max-text-length must be at most {positions - 2}, as {options.encoder} has {positions} positions "
            f"for [CLS] and [SEP] too, got {options.max_text_length}"
        )
    if options.uniter:
        lay_over(model, options.uniter)
    if labels:
        model.init_labels(tokenizer)
    model.config.update(
        {
            "hidden_dropout_prob": options.dropout,
            "attention_probs_dropout_prob": options.dropout,
            "max_regions": options.max_regions,
        }
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = options.dropout
    tokenizer.model_max_length = options.max_text_length + 2
    model.set_attn_implementation(options.attn_implementation)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, tokenizer


def _scratch_config(options: Options, vocab_size: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers or 2,
        num_attention_heads=options.num_heads,
        intermediate_size=options.intermediate_size,
        max_position_embeddings=options.max_text_length + 2,
        # BERT's 0.02 suits its 768 units: with it, narrow layers pass on so little that training does not start.
        initializer_range=options.hidden_size**-0.5,
    )


def lay_over(model: RegionRetriever, path: str | Path) -> None:
    """Replace the model's weights by those of a UNITER checkpoint.

    Raises:
        CheckpointError: the file cannot be read safely, is no UNITER checkpoint, or has another size.
    """
    weights = read_weights(path)
    try:
        model.load_uniter(weights)
    except CheckpointError as error:
        raise CheckpointError(f"--uniter {path}: {error}") from error


def load(folder: str | Path, device: str | torch.device = "cpu") -> tuple[RegionRetriever, PreTrainedTokenizerBase]:
    """A trained retriever in evaluation mode, and its tokenizer, which cuts texts to the model's number of positions.

    Raises:
        CheckpointError: the folder holds no trained retriever.
    """
    model = RegionRetriever.from_pretrained(folder).eval().to(device)
    tokenizer = load_tokenizer(folder, model.config.vocab_size)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Device):
    """The trained model, and what it reads."""

    model: str = option("runs/iais/seed1/model", "folder of the model")
    data: str = option(help="folder that train reads, or one file of it, whose images need no captions then")
    split: str = option("test", "split of the folder", SPLITS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.data).is_file():
            self.refuse_idle(f"with --data {self.data}, a file", "split")

    def load(self, device: str | torch.device) -> tuple[RegionRetriever, Collator, RegionData]:
        """The model, the collator of its tokenizer, and the split with as many regions as it was trained on."""
        model, tokenizer = load(self.model, device)
        if Path(self.data).is_file():
            data = read_regions(self.data, max_regions=model.config.max_regions, need_captions=False)
        else:
            data = read_splits(self.data, max_regions=model.config.max_regions)[self.split]
        return model, Collator(tokenizer, None), data


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(ModelOptions):
    """The trained model, and the pairs that it scores."""

    eval_batch_size: int = option(64, "pairs in a forward pass", least=1, aliases=("score_batch",))
