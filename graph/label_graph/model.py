"""Hierarchical attention network: words to reviews, reviews to a sample, a sample to label scores.

Zichao Yang, Diyi Yang, Chris Dyer, Xiaodong He, Alex Smola, Eduard Hovy, "Hierarchical Attention Networks for Document
Classification", NAACL 2016; with the sizes of arXiv:1808.07604.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graph.label_graph.label_graph import LabelGraph

__all__ = ["CELLS", "NO_CELL", "AttentionPooling", "HierarchicalAttentionNetwork"]

PADDING = 0
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}
NO_CELL = "none"


class AttentionPooling(nn.Module):
    r"""Weighted mean of projected states; the weights come from their similarity to a learned context vector.

    .. math::
        q_t = \tanh(W h_t + b), \qquad a = \mathrm{softmax}_t(u \cdot q_t), \qquad s = \sum_t a_t q_t

    The network of arXiv:1808.07604 pools the projections :math:`q_t`; Yang et al. pool the states :math:`h_t`.

    Args:
        in_features: size of :math:`h_t`.
        out_features: size of :math:`q_t`, u and s.

    Shape:
        states ``(N, T, in_features)``, key_padding_mask ``(N, T)``, True where a position is padding. Returns
        ``(N, out_features)`` and the weights ``(N, T)``. A row that is all padding gives zeros.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.projection = nn.Linear(in_features, out_features)
        self.context = nn.Linear(out_features, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.xavier_uniform_(self.context.weight)

    def forward(self, states: Tensor, key_padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        projected = self.projection(states).tanh()
        scores = self.context(projected).squeeze(-1)
        if key_padding_mask is None:
            weights = scores.softmax(-1)
        else:
            # The least number instead of -inf: a row that is all padding must not become nan.
            scores = scores.masked_fill(key_padding_mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1).masked_fill(key_padding_mask, 0.0)
        return (weights[:, None] @ projected).squeeze(1), weights


class _Level(nn.Module):
    """A recurrent network in both directions (or none), attention pooling and dropout, over rows that are not empty.

    The right-to-left network reads each row mirrored within its length. The result is that of packed sequences, in a
    third to a half of the time on a CPU.
    """

    def __init__(self, in_features: int, hidden_size: int, out_features: int, cell: str, dropout: float, masked: bool):
        super().__init__()
        self.recurrent = cell != NO_CELL
        if self.recurrent:
            self.left_to_right = CELLS[cell](in_features, hidden_size, batch_first=True)
            self.right_to_left = CELLS[cell](in_features, hidden_size, batch_first=True)
        self.pooling = AttentionPooling(2 * hidden_size if self.recurrent else in_features, out_features)
        self.dropout = nn.Dropout(dropout)
        self.masked = masked

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        rows, positions, _ = x.shape
        if rows == 0:  # recurrent networks refuse an empty batch
            return x.new_zeros(0, self.pooling.projection.out_features), x.new_zeros(0, positions)
        if self.masked:
            x = x[:, : int(lengths.max())]
        place = torch.arange(x.size(1), device=x.device)
        padding = place >= lengths[:, None]
        states = self._recur(x, place, padding, lengths) if self.recurrent else x
        if self.masked:
            pooled, weights = self.pooling(states, padding)
        else:
            pooled, weights = self.pooling(states.masked_fill(padding[..., None], 0.0))
        return self.dropout(pooled), F.pad(weights, (0, positions - weights.size(1)))

    def _recur(self, x: Tensor, place: Tensor, padding: Tensor, lengths: Tensor) -> Tensor:
        mirror = torch.where(padding, place, lengths[:, None] - 1 - place)[..., None]
        rightwards, _ = self.left_to_right(x)
        leftwards, _ = self.right_to_left(x.take_along_dim(mirror, 1))
        return torch.cat((rightwards, leftwards.take_along_dim(mirror, 1)), -1)


class HierarchicalAttentionNetwork(nn.Module):
    """Label logits of samples that are sets of short texts; the base network of arXiv:1808.07604.

    The words of a review pass a bidirectional recurrent network and attention pooling; the reviews of a sample pass a
    second recurrent network and pooling; a linear layer scores the labels. A label graph, if there is one, then mixes
    the scores.

    Args:
        num_words: size of the vocabulary, including id 0, which is padding. None: the network reads vectors in the
            place of ids.
        num_labels: number of labels, m.
        embedding_dim: size of word vectors. Default 100, as in the paper.
        hidden_size: units of each direction. Default 128, as in the released code.
        attention_size: size of the vectors of reviews and samples. Default 100, as in the released code.
        cell: ``"lstm"`` or ``"gru"``, or ``"none"`` for attention without a recurrent network, over vectors that
            already depend on their neighbours. Default ``"lstm"``, our choice; the released code imports both cells.
        dropout: dropout on the vectors of reviews and samples. Default 0, as in the released code.
        word_dropout: share of the words whose vectors are zero in a training step; the others are divided by
            1 - share. Default 0, as in the released code.
        masked: whether padding gets no attention. Default True. With False the softmax runs over all positions, as in
            the code that the released one builds on, and a result depends on how far a sample is padded.
        vectors: initial word vectors ``(num_words, embedding_dim)``. Default: random ones.
        freeze_vectors: whether word vectors are constants. Default: given vectors are, random ones are not, as in the
            released code.
        label_graph: a :class:`~graph.label_graph.LabelGraph` over the scores. Default: None.

    Shape:
        ids ``(N, R, T)``: R reviews of T word ids, integers of any type, padded with 0 on the right. Reviews without
        words are skipped wherever they stand; the vector of a sample without reviews is zero. Without a vocabulary, the
        input is vectors ``(N, R, T, embedding_dim)``, padded with zeros. Returns logits ``(N, m)``, and with
        ``need_weights=True`` also the attention of words ``(N, R, T)`` and of reviews ``(N, R)``.

    Raises:
        ValueError: an argument or ids do not fit; the message names them.

    Example:
        >>> model = HierarchicalAttentionNetwork(1000, 22, label_graph=LabelGraph(22))
        >>> logits = model(torch.randint(1, 1000, (8, 40, 20)))
    """

    def __init__(
        self,
        num_words: int | None,
        num_labels: int,
        embedding_dim: int = 100,
        hidden_size: int = 128,
        attention_size: int = 100,
        cell: str = "lstm",
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        masked: bool = True,
        vectors: Tensor | None = None,
        freeze_vectors: bool | None = None,
        label_graph: LabelGraph | None = None,
    ) -> None:
        super().__init__()
        if cell not in (*CELLS, NO_CELL):
            raise ValueError(f"cell must be one of {(*CELLS, NO_CELL)}, got {cell!r}")
        if vectors is not None and vectors.shape != (num_words, embedding_dim):
            raise ValueError(f"vectors must have shape {(num_words, embedding_dim)}, got {tuple(vectors.shape)}")
        if label_graph is not None and len(label_graph.weight) != num_labels:
            raise ValueError(f"label_graph must be of {num_labels} labels, got {len(label_graph.weight)}")
        self.embedding_dim = embedding_dim
        self.embedding = None if num_words is None else nn.Embedding(num_words, embedding_dim, padding_idx=PADDING)
        if vectors is not None:
            self.embedding = nn.Embedding.from_pretrained(vectors, padding_idx=PADDING)
        if self.embedding is not None and freeze_vectors is not None:
            self.embedding.weight.requires_grad_(not freeze_vectors)
        self.word_dropout = nn.Dropout1d(word_dropout)  # of vectors (reviews, words, D): whole words
        self.word_level = _Level(embedding_dim, hidden_size, attention_size, cell, dropout, masked)
        self.review_level = _Level(attention_size, hidden_size, attention_size, cell, dropout, masked)
        self.output = nn.Linear(attention_size, num_labels)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.label_graph = label_graph

    def forward(self, ids: Tensor, need_weights: bool = False):
        is_word = self._present(ids)
        if (is_word[..., 1:] & ~is_word[..., :-1]).any():
            raise ValueError("ids: padding, which is 0, must stand behind the words of a review")
        lengths = is_word.sum(-1)
        present = lengths > 0
        sample, _ = present.nonzero(as_tuple=True)
        # The j-th review of a sample that has words moves to place j, so that the second level sees no gaps.
        place = (present.cumsum(1) - 1).clamp(min=0)

        words = ids[present] if self.embedding is None else self.embedding(ids[present].int())
        vectors, word_weights = self.word_level(self.word_dropout(words), lengths[present])
        reviews = vectors.new_zeros(*present.shape, vectors.size(-1)).index_put((sample, place[present]), vectors)
        count = present.sum(1)
        some = count > 0
        pooled, review_weights = self.review_level(reviews[some], count[some])
        representation = pooled.new_zeros(len(ids), pooled.size(-1)).index_put((some,), pooled)

        logits = self.output(representation)
        if self.label_graph is not None:
            logits = self.label_graph(logits)
        if not need_weights:
            return logits
        of_words = word_weights.new_zeros(is_word.shape).index_put((present,), word_weights)
        of_reviews = review_weights.new_zeros(present.shape).index_put((some,), review_weights)
        return logits, of_words, of_reviews.gather(1, place).masked_fill(~present, 0.0)

    def _present(self, ids: Tensor) -> Tensor:
        """Where the input has words and not padding, bool, ``(N, R, T)``."""
        if self.embedding is None:
            if ids.dim() != 4 or not ids.is_floating_point():
                raise ValueError(
                    f"vectors must be numbers (samples, reviews, words, D), got {ids.dtype} {tuple(ids.shape)}"
                )
            return (ids != 0).any(-1)
        if ids.dim() != 3 or ids.is_floating_point():
            raise ValueError(f"ids must be integers (samples, reviews, words), got {ids.dtype} {tuple(ids.shape)}")
        words = self.embedding.num_embeddings
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < words:  # such ids end the process on a GPU
            raise ValueError(f"ids must be in [0, {words}), got {int(ids.min())} to {int(ids.max())}")
        return ids != PADDING
