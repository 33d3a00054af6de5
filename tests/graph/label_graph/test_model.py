"""Attention pooling and the hierarchical network: fixtures, and results that do not depend on padding or the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graph.label_graph import AttentionPooling, HierarchicalAttentionNetwork, LabelGraph
from tests.helpers import golden_names, load_golden

WORDS, LABELS = 30, 4


def network(**options):
    torch.manual_seed(0)
    options = {"embedding_dim": 6, "hidden_size": 5, "attention_size": 7} | options
    return HierarchicalAttentionNetwork(WORDS, LABELS, **options).double()


def documents(seed, samples=4, reviews=3, words=5):
    """Ids with random lengths, some reviews empty, the first sample without any review."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (samples, reviews, words), generator=generator)
    lengths = torch.randint(0, words + 1, (samples, reviews, 1), generator=generator)
    lengths[0] = 0
    return ids.masked_fill(torch.arange(words) >= lengths, 0)


@pytest.mark.parametrize("name", golden_names("rmsc", "attention_"))
def test_attention_fixture(name):
    data = {key: torch.as_tensor(value) for key, value in load_golden("rmsc", name).items()}
    size, features = data["W"].shape
    pooling = AttentionPooling(features, size).double()
    state = {"projection.weight": data["W"], "projection.bias": data["b"], "context.weight": data["u"][None]}
    pooling.load_state_dict(state)
    x = data["x"].clone().requires_grad_()
    mask = torch.arange(x.size(1)) >= data["lengths"][:, None] if data["masked"] else None
    out, weights = pooling(x, mask)
    (out * data["cotangent"]).sum().backward()
    exact = dict(rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out, data["out"], **exact)
    torch.testing.assert_close(weights, data["weights"], **exact)
    torch.testing.assert_close(x.grad, data["grad_x"], **exact)


def test_a_row_of_padding_is_zero_and_has_no_gradient():
    pooling = AttentionPooling(3, 2)
    x = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    out, weights = pooling(x, mask)
    out.sum().backward()
    assert (out[1] == 0).all() and (weights[1] == 0).all() and (x.grad[1] == 0).all() and x.grad.isfinite().all()


@pytest.mark.parametrize("cell", ["lstm", "gru", "none"])
@given(seed=st.integers(0, 10**6))
def test_padding_batch_and_empty_reviews_do_not_matter(cell, seed):
    model, ids = network(cell=cell), documents(seed)
    expected = model(ids)
    torch.testing.assert_close(torch.cat([model(sample[None]) for sample in ids]), expected)
    wider = torch.zeros(4, 8, 9, dtype=torch.long)
    wider[:, [1, 4, 7], :5] = ids  # empty reviews before, between and behind
    torch.testing.assert_close(model(wider), expected)
    torch.testing.assert_close(model(ids.flip(0)), expected.flip(0))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_both_directions_are_those_of_packed_sequences(cell):
    level = network(cell=cell).word_level
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    packed = kind(6, 5, batch_first=True, bidirectional=True).double()
    reverse = {f"{name}_reverse": value for name, value in level.right_to_left.state_dict().items()}
    packed.load_state_dict(level.left_to_right.state_dict() | reverse)
    x, lengths = torch.randn(4, 6, 6, dtype=torch.float64), torch.tensor([3, 6, 1, 5])
    sequence = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(packed(sequence)[0], batch_first=True)
    for masked in (True, False):
        level.masked = masked
        padding = torch.arange(6) >= lengths[:, None] if masked else None
        for actual, expected in zip(level(x, lengths), level.pooling(states, padding), strict=True):
            torch.testing.assert_close(actual, expected)


def test_order_of_words_and_reviews_matters():
    model, ids = network(), torch.randint(1, WORDS, (1, 3, 5), generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(model(ids), model(ids.flip(1)))
    assert not torch.allclose(model(ids), model(ids.flip(2)))


def test_sample_without_reviews_scores_the_bias():
    model = network()
    model.output.bias.data.uniform_()
    torch.testing.assert_close(model(documents(1))[0], model.output.bias)
    logits = model(torch.zeros(2, 3, 5, dtype=torch.long))
    torch.testing.assert_close(logits, model.output.bias.expand(2, -1))


def test_empty_reviews_leave_gradients_finite():
    model = network(label_graph=LabelGraph(LABELS))
    model(documents(2)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_unmasked_attention_sees_padding():
    model, ids = network(masked=False), documents(3)
    wider = torch.nn.functional.pad(ids, (0, 4))
    assert not torch.allclose(model(ids)[1:], model(wider)[1:])
    full = torch.randint(1, WORDS, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(full), network(masked=True)(full))


def test_weights_are_distributions_over_what_is_there():
    ids = documents(4)
    logits, of_words, of_reviews = network()(ids, need_weights=True)
    torch.testing.assert_close(logits, network()(ids))
    present = (ids != 0).any(-1)
    torch.testing.assert_close(of_words.sum(-1), present.double())
    torch.testing.assert_close(of_reviews.sum(-1), present.any(-1).double())
    assert ((of_words > 0) == (ids != 0)).all() and ((of_reviews > 0) == present).all()


def test_without_a_cell_it_is_attention_alone():
    """Pooled words, pooled reviews, and a linear layer, of one sample without gaps."""
    model, ids = network(cell="none"), torch.randint(1, WORDS, (1, 3, 5))
    reviews, _ = model.word_level.pooling(model.embedding(ids[0]))
    sample, _ = model.review_level.pooling(reviews[None])
    torch.testing.assert_close(model(ids), model.output(sample))
    assert not [name for name, _ in model.named_parameters() if "left" in name or "right" in name]


def test_word_dropout_leaves_out_whole_words_in_training():
    model, ids, read = network(word_dropout=0.5), documents(3, samples=200), []
    model.word_level.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        for mode in (True, False):
            model.train(mode)(ids)
    dropped, kept = read[0], read[1]
    words = kept.abs().sum(-1) > 0
    gone = (dropped == 0).all(-1)
    torch.testing.assert_close(dropped[~gone], 2 * kept[~gone])
    torch.testing.assert_close(kept, model.embedding(ids[(ids > 0).any(-1)]))
    assert 0.45 < gone[words].double().mean() < 0.55 and len({tuple(row) for row in gone.tolist()}) > 10


def test_label_graph_has_the_last_word():
    graph = LabelGraph(LABELS)
    graph.weight.data.normal_()
    model, ids = network(label_graph=graph), documents(5)
    torch.testing.assert_close(model(ids), network()(ids) @ graph.weight)


@pytest.mark.parametrize("freeze", [True, False, None])
def test_word_vectors_are_constants_or_trained(freeze):
    """Given ones are constants where nothing is said, random ones are not."""
    vectors = torch.randn(WORDS, 6)
    given, random = network(vectors=vectors, freeze_vectors=freeze), network(freeze_vectors=freeze)
    for model in (given, random):
        model(documents(6)).sum().backward()
    torch.testing.assert_close(given.embedding.weight.float(), vectors)
    assert (given.embedding.weight.grad is None) == (freeze is not False)
    assert (random.embedding.weight.grad is None) == bool(freeze)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "cell must be one of .* got 'rnn'"),
        ({"vectors": torch.zeros(3, 6)}, r"vectors .* got \(3, 6\)"),
        ({"label_graph": LabelGraph(5)}, "label_graph must be of 4 labels, got 5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_any_integer_type(dtype):
    model, ids = network(), documents(7)
    assert torch.equal(model(ids.to(dtype)), model(ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.ones(2, 3, 4), r"ids must be integers \(samples, reviews, words\), got torch.float32 \(2, 3, 4\)"),
        (torch.ones(2, 3, dtype=torch.long), r"ids must be integers .* got torch.int64 \(2, 3\)"),
        (torch.full((1, 1, 1), WORDS), rf"ids must be in \[0, {WORDS}\), got {WORDS} to {WORDS}"),
        (torch.full((1, 1, 1), -1), rf"ids must be in \[0, {WORDS}\), got -1 to -1"),
        (torch.tensor([[[0, 5, 6]]]), "padding, which is 0, must stand behind the words"),
        (torch.tensor([[[5, 0, 6]]]), "padding, which is 0, must stand behind the words"),
    ],
    ids=["floats", "two dimensions", "too large", "negative", "left", "between"],
)
def test_ids_that_would_be_misread(ids, message):
    with pytest.raises(ValueError, match=message):
        network()(ids)


def test_no_samples_have_no_scores():
    assert network()(torch.zeros(0, 3, 5, dtype=torch.long)).shape == (0, LABELS)
