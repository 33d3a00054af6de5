"""A pre-trained Hugging Face encoder in the place of word vectors; its states are constants, computed once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.extras import missing_package
from fairseq_ext.training.files import replacing, writing_to
from fairseq_ext.training.locks import locked
from fairseq_ext.training.progress import progress, say
from fairseq_ext.training.settings import digest

__all__ = ["DTYPES", "POOLINGS", "Encoder", "States", "fingerprint_of"]

POOLINGS = ("mean", "none")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHUNK = 2048
"""Reviews in one file of the cache: few enough that a killed run loses little."""
BATCH = 32


@dataclass(frozen=True)
class States:
    """Constant vectors of the text that is read of some samples.

    Args:
        table: all vectors, ``(1 + vectors, D)`` in half precision; row 0 is zeros, for padding.
        rows: numbers of rows of the table, ``(samples, reviews, vectors of a review)``, 0 for padding.
        digest: digest of the encoder and of everything that it read.

    Indexed by numbers of samples, it gives their vectors, ``(N, reviews, longest review, D)``, in single precision.
    """

    table: Tensor
    rows: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, samples: Tensor) -> Tensor:
        rows = self.rows[samples]
        longest = max(int(rows.count_nonzero(-1).max()), 1)
        return self.table[rows[..., :longest].long()].float()


@dataclass(frozen=True)
class Encoder:
    """Turns reviews into vectors of mean 0 and deviation 1 by a text encoder, which is loaded when first needed.

    Args:
        folder: folder of the model, with configuration, safetensors and tokenizer.
        fingerprint: fingerprint of the folder, as :func:`fingerprint_of` gives it.
        num_layers: how many of the first layers are used. Default: 0, all.
        pooling: ``"mean"``, one vector from all states of a review, or ``"none"``, a vector from the state of each
            token. Default ``"mean"``.
        precision: number format of the forward pass. Default ``"float32"``.

    Raises:
        OptionError: no such folder, or the model is no encoder of texts.
        CheckpointError: no model in the folder, or a model with another fingerprint.
    """

    folder: str
    fingerprint: str
    num_layers: int = 0
    pooling: str = "mean"
    precision: str = "float32"

    @functools.cached_property
    def _model(self) -> Any:
        pretrained = _pretrained()
        from transformers import AutoConfig, AutoModel

        pretrained.read_config(self.folder)
        pretrained.check_weights(self.folder)
        if pretrained.fingerprint(self.folder) != self.fingerprint:
            raise CheckpointError(f"{self.folder}: another encoder than that of the training")
        with pretrained.loading(self.folder):
            config = AutoConfig.from_pretrained(self.folder, **pretrained.LOCAL)
            if config.is_encoder_decoder:
                raise OptionError(f"--encoder: {self.folder} has a decoder; only encoders are read")
            if self.num_layers:
                whole = getattr(config.get_text_config(), "num_hidden_layers", self.num_layers)
                if self.num_layers > whole:
                    raise OptionError(f"--num-layers: {self.folder} has {whole} layers, got {self.num_layers}")
                pretrained.cut_layers(config, self.num_layers, self.folder)
        model, _ = pretrained.load_model(
            AutoModel.from_pretrained, self.folder, start=True, config=config, dtype=torch.float32
        )
        return model.eval()

    @functools.cached_property
    def _tokenizer(self) -> Any:
        config = _pretrained().read_config(self.folder)
        return _pretrained().load_tokenizer(self.folder, config.get("vocab_size"), config.get("pad_token_id"))

    @property
    def hidden_size(self) -> int:
        """The length of a state, D."""
        return int(self._model.config.get_text_config().hidden_size)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without the special tokens before and after it."""
        # verbose=False: no warning of a text that is too long for the model, which is cut later.
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    @functools.cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens before a text, and of those after it."""
        bare, whole = self.tokenize("a"), self._tokenizer("a")["input_ids"]
        start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def encode(
        self,
        reviews: Sequence[Sequence[Sequence[int]]],
        max_reviews: int,
        max_words: int,
        device: str | torch.device = "cpu",
        cache: Path | None = None,
    ) -> States:
        """The states of the first reviews of each sample, of which the first tokens are read.

        Args:
            reviews: token ids of each review of every sample, as :meth:`tokenize` gives them.
            max_reviews: most reviews of a sample.
            max_words: most tokens of a review.
            device: where to compute. Default: the CPU.
            cache: folder that keeps states; several encoders and texts may share it. Default: None, nothing is kept.
        """
        self._check_length(max_words)
        first, last = self._ends
        read = [[[*first, *review[:max_words], *last] for review in sample[:max_reviews]] for sample in reviews]
        flat = [review for sample in read for review in sample]
        starts = range(0, len(flat), CHUNK)
        name = f"states of {len(flat)} reviews"
        parts = [
            self._stored(flat[start : start + CHUNK], device, cache)
            for start in progress(starts, name, unit=f" x {CHUNK}", leave=False)
        ]
        table = torch.cat([torch.zeros(1, self.hidden_size, dtype=torch.float16), *parts])
        counts = [[1 if self.pooling == "mean" else len(review) for review in sample] for sample in read]
        shape = (len(read), max(map(len, read), default=0) or 1, max((n for c in counts for n in c), default=1))
        rows, row = torch.zeros(shape, dtype=torch.int32), 1
        for sample, of_sample in enumerate(counts):
            for review, count in enumerate(of_sample):
                rows[sample, review, :count] = torch.arange(row, row + count)
                row += count
        return States(table, rows, digest(self._identity, read))

    @property
    def _identity(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "folder"}

    def _check_length(self, max_words: int) -> None:
        limits = (_pretrained().max_positions(self._model), self._tokenizer.model_max_length)
        longest = min(limit for limit in limits if limit) - sum(map(len, self._ends))
        if max_words > longest:
            raise OptionError(f"--max-words: {self.folder} reads at most {longest} tokens of a text, got {max_words}")

    def _stored(self, reviews: list[list[int]], device: str | torch.device, cache: Path | None) -> Tensor:
        """The vectors of ``reviews``, in their order, ``(vectors, D)``; read from the cache where it has them."""
        if cache is None:
            return self._computed(reviews, device)
        from safetensors.torch import load_file, save_file

        path = cache / f"{digest(self._identity, reviews)[:32]}.safetensors"
        if path.exists():
            try:
                return load_file(path)["states"]
            except Exception as error:  # a damaged file raises many types
                say(f"{path}: damaged ({type(error).__name__}); computed again")
        states = self._computed(reviews, device)
        with writing_to(cache, "--cache"), locked(cache), replacing(path) as partial:
            save_file({"states": states}, partial)
        return states

    @torch.inference_mode()
    def _computed(self, reviews: list[list[int]], device: str | torch.device) -> Tensor:
        model, dtype = self._model.to(device), DTYPES[self.precision]
        order = sorted(range(len(reviews)), key=lambda review: -len(reviews[review]))
        states: dict[int, Tensor] = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            padded = self._tokenizer.pad({"input_ids": [reviews[review] for review in batch]}, return_tensors="pt")
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                hidden = model(**padded.to(device)).last_hidden_state.float()
            for review, of_review, mask in zip(batch, hidden, padded["attention_mask"].bool(), strict=True):
                vectors = of_review[mask]
                vectors = vectors.mean(0, keepdim=True) if self.pooling == "mean" else vectors
                # The size of states differs tenfold between encoders and layers; attention begins with a tanh.
                states[review] = F.layer_norm(vectors, vectors.shape[-1:]).half().cpu()
        return torch.cat([states[review] for review in range(len(reviews))])


def fingerprint_of(folder: str) -> str:
    """SHA-256 of the encoder that is in ``folder`` now.

    Raises:
        OptionError: no such folder, or packages that are missing.
        CheckpointError: no model in it.
    """
    try:
        _pretrained().read_config(folder)
    except OptionError as error:
        raise OptionError(f"--encoder: {error}") from error
    return _pretrained().fingerprint(folder)


def _pretrained() -> Any:
    """The module that reads Hugging Face's folders; its import takes seconds, and packages of the extra ``vl``."""
    try:
        from fairseq_ext.training import pretrained
    except ModuleNotFoundError as error:
        message = missing_package(error, "vl")
        raise message or error from None
    return pretrained
