"""Monte-Carlo dropout on real architectures, and the scores: fixtures, limits, and what must not change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fairseq_ext.training.errors import DataError
from tests.helpers import golden_names, load_golden
from vision_language.muka.uncertainty import (
    SCORES,
    active_dropout,
    dropout_probabilities,
    mc_dropout_probabilities,
    teacher_scores,
)

EXACT = dict(rtol=1e-9, atol=1e-9)


def mc_logits(name):
    data = load_golden("muka", name)
    return [torch.as_tensor(data[f"mc_logits_{t}"]) for t in range(len(data["num_classes"]))], data


@pytest.mark.parametrize("name", golden_names("muka", "mc_case"))
def test_fixture_score(name):
    logits, data = mc_logits(name)
    scores = torch.stack([teacher_scores(each.softmax(-1)) for each in logits], -1)
    torch.testing.assert_close(scores, torch.as_tensor(data["teacher_score"]), **EXACT)
    assert scores.argmax(-1).tolist() == data["golden_teacher"].tolist()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("name", golden_names("muka", "mc_alt_case"))
def test_fixture_of_every_kind(name, kind):
    logits, _ = mc_logits(name.replace("mc_alt", "mc"))
    scores = torch.stack([teacher_scores(each.softmax(-1), kind) for each in logits], -1)
    torch.testing.assert_close(scores, torch.as_tensor(load_golden("muka", name)[f"score_{kind}"]), **EXACT)


def probabilities(seed, passes=5, batch=4, classes=3, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(passes, batch, classes, generator=generator, dtype=torch.float64)).softmax(-1)


@given(st.integers(0, 10**6), st.sampled_from(SCORES), st.integers(2, 6), st.integers(1, 4), st.floats(0.1, 50))
def test_scores_ignore_the_order_of_passes_and_classes_and_the_rest_of_the_batch(seed, kind, classes, batch, scale):
    p = probabilities(seed, batch=batch, classes=classes, scale=scale)
    scores = teacher_scores(p, kind)
    assert scores.shape == (batch,) and scores.isfinite().all()
    generator = torch.Generator().manual_seed(seed)
    shuffled = p[torch.randperm(len(p), generator=generator)][..., torch.randperm(classes, generator=generator)]
    torch.testing.assert_close(teacher_scores(shuffled, kind), scores)
    torch.testing.assert_close(teacher_scores(p[:, :1], kind), scores[:1])
    low, high = {"variance": (-1, 0), "mutual_info": (-1, 0)}.get(kind, (0, 1))
    assert (scores > low - 1e-12).all() and (scores < high + 1e-12).all()


@pytest.mark.parametrize("classes", [2, 7])
def test_limits_of_the_scores(classes):
    uniform = torch.full((3, 1, classes), 1 / classes, dtype=torch.float64)
    certain = torch.eye(classes, dtype=torch.float64)[:1].expand(3, 1, classes)
    disagreeing = torch.eye(classes, dtype=torch.float64)[:, None]
    for kind, low, high in (("entropy", 0, 1), ("max_prob", 1 / classes, 1), ("margin", 0, 1)):
        assert teacher_scores(uniform, kind).item() == pytest.approx(low, abs=1e-12)
        assert teacher_scores(certain, kind).item() == pytest.approx(high, abs=1e-12)
        assert teacher_scores(disagreeing, kind).item() == pytest.approx(low, abs=1e-12)
    for kind, worst in (("variance", -(1 - 1 / classes)), ("mutual_info", -1)):
        # every pass sure of another class: nothing but the model's own uncertainty
        assert teacher_scores(disagreeing, kind).item() == pytest.approx(worst, abs=1e-12)
        assert teacher_scores(uniform, kind).item() == pytest.approx(0, abs=1e-12)
        assert teacher_scores(certain, kind).item() == 0


@pytest.mark.parametrize("kind", SCORES)
def test_probabilities_that_underflow_give_finite_scores(kind):
    logits = torch.tensor([[[1e4, 0.0, -1e4]], [[1e30, 0.0, 0.0]]])
    assert teacher_scores(logits.softmax(-1), kind).isfinite().all()


def test_refusals():
    with pytest.raises(SystemExit, match=r"score: 'entrop' is not one of .* did you mean 'entropy'"):
        teacher_scores(probabilities(0), "entrop")
    for shape in ((4, 3), (2, 4, 1)):
        with pytest.raises(ValueError, match=r"must be \(passes, batch, classes\) with two classes or more"):
            teacher_scores(torch.ones(shape))
    for options, message in (({"passes": 0}, "passes must be at least 1, got 0"), ({"chunk_size": 0}, "chunk_size")):
        with pytest.raises(SystemExit, match=message):
            mc_dropout_probabilities(nn.Linear(2, 2), {"input": torch.zeros(1, 2)}, **options)


class WithTable(nn.Module):
    """Takes a table of its own size beside the examples."""

    def __init__(self, main="input_ids"):
        super().__init__()
        self.main_input_name, self.dropout = main, nn.Dropout(0.3)

    def forward(self, table, **inputs):
        return self.dropout(inputs[self.main_input_name] @ table)


@pytest.mark.parametrize("main", ["input_ids", "pixel_values"])
def test_the_examples_are_the_rows_of_the_main_input(main):
    """Whatever comes before it or has more rows."""
    batch = {"table": torch.rand(7, 3), main: torch.rand(4, 7), "mask": torch.ones(1, 7)}
    passes = mc_dropout_probabilities(WithTable(main), batch, 2, seed=0, chunk_size=3)
    repeated = {"table": batch["table"], main: batch[main].repeat(2, 1)}
    assert passes.shape == (2, 4, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WithTable(main).train()
        expected = [model(**repeated | {main: part}) for part in repeated[main].split(3)]
    torch.testing.assert_close(passes.flatten(0, 1), torch.cat(expected).softmax(-1))


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (
            WithTable(),
            {"table": torch.rand(7, 3), "x": torch.rand(4, 7)},
            r"needs input_ids, .* has table \(7, 3\), x \(",
        ),
        (WithTable(), {"table": [1]}, "needs input_ids, .* has no tensor"),
        (nn.Dropout(0.3), {"input": torch.rand(4, 5, 3)}, r"of 64 rows the model makes logits of shape \(64, 5, 3\)"),
        (
            nn.Sequential(nn.Dropout(0.3), nn.Flatten(0)),
            {"input": torch.rand(4, 3)},
            r"of 64 rows the model makes logits of shape \(192,\)",
        ),
    ],
)
def test_a_batch_that_does_not_tell_its_size_is_refused(model, batch, message):
    with pytest.raises(DataError, match=f"^batch: {message}"):
        mc_dropout_probabilities(model, batch)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3)).double()


BATCH = {"input": torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}


def test_only_dropout_is_active_and_every_mode_comes_back():
    model = network()
    model[4].eval()  # the rest is in training mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with active_dropout(model) as largest:
        assert largest == 0.3
        assert [module.training for module in model] == [False, False, False, True, False]
    mc_dropout_probabilities(model, BATCH, 3)
    assert [module.training for module in model.modules()] == modes
    # batch normalisation, which was in training mode, has not moved its statistics
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_an_error():
    model = network()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        mc_dropout_probabilities(model, {"input": torch.zeros(5, 99, dtype=torch.float64)}, 3)
    assert [module.training for module in model.modules()] == modes


def test_passes_and_rows_differ_and_average_to_the_expectation():
    model = network().eval()
    same = {"input": BATCH["input"][:1].expand(4, -1)}
    p = mc_dropout_probabilities(model, same, 400, seed=0)
    assert p.shape == (400, 4, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones(400, 4, dtype=torch.float64))
    assert len(p[:3].reshape(-1, 3).unique(dim=0)) == 12  # each pass and each row has a mask of its own
    torch.testing.assert_close(p[:200].mean((0, 1)), p[200:].mean((0, 1)), rtol=0, atol=0.02)


def test_a_seed_repeats_the_masks_and_leaves_the_generator_alone():
    model = network()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = mc_dropout_probabilities(model, BATCH, 4, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mc_dropout_probabilities(model, BATCH, 4, seed=7), first)
    assert not torch.equal(mc_dropout_probabilities(model, BATCH, 4, seed=8), first)
    mc_dropout_probabilities(model, BATCH, 4)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 100])
def test_chunks_keep_the_order_of_passes_and_rows(chunk_size):
    model = nn.Sequential(nn.Dropout(1e-12), nn.Linear(6, 3)).double()
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs, kwargs: sizes.append(len(kwargs["input"])), with_kwargs=True)
    p = mc_dropout_probabilities(model, BATCH, 3, chunk_size=chunk_size)
    assert max(sizes) == min(chunk_size, 15) and sum(sizes) == 15
    torch.testing.assert_close(p, model[1](BATCH["input"]).softmax(-1).expand(3, -1, -1))


def test_half_precision_gives_single_precision_probabilities():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).bfloat16()
    p = mc_dropout_probabilities(model, {"input": BATCH["input"].bfloat16()}, 2)
    assert p.dtype == torch.float32 and not p.requires_grad


def test_a_model_without_dropout_is_refused():
    for model in (nn.Linear(6, 3), nn.Sequential(nn.Dropout(0.0), nn.Linear(6, 3))):
        with pytest.raises(SystemExit, match="16 Monte-Carlo passes: the model has no dropout above 0"):
            mc_dropout_probabilities(model.double(), BATCH)


TINY = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3
)


def text_classifier(attention, hidden_dropout=0.1, attention_dropout=0.1, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **TINY, hidden_dropout_prob=hidden_dropout, attention_probs_dropout_prob=attention_dropout, **options
    )
    return transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()


def tokens(batch=4, length=6):
    ids = torch.randint(1, 40, (batch, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(batch, dtype=torch.long)}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("where", ["everywhere", "hidden", "attention"])
def test_passes_of_a_transformer_differ(attention, where):
    rates = {"everywhere": (0.1, 0.1), "hidden": (0.1, 0.0), "attention": (0.0, 0.1)}[where]
    model = text_classifier(attention, *rates)
    if where == "attention":
        model.dropout.p = 0.0
    p = mc_dropout_probabilities(model, tokens(), 8, seed=0)
    assert all(len(p[:, row].unique(dim=0)) == 8 for row in range(4))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_transformer_without_dropout_is_refused(attention):
    with pytest.raises(SystemExit, match="no dropout above 0"):
        mc_dropout_probabilities(text_classifier(attention, 0.0, 0.0), tokens())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_mc_dropout_is_that_of_training_mode(attention):
    # A transformer has nothing but dropout that differs in training, so the same masks give the same outputs.
    model, batch = text_classifier(attention), tokens()
    torch.manual_seed(3)
    with torch.no_grad():
        expected = model.train()(**{name: value for name, value in batch.items() if name != "labels"}).logits
    actual = mc_dropout_probabilities(model.eval(), batch, 1, seed=3)
    torch.testing.assert_close(actual[0], expected.softmax(-1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_has_its_own_dropout_afterwards(attention):
    """An attention and the dropout module in it name the same probability."""
    model = text_classifier(attention, 0.1, 0.2)
    before = dropout_probabilities(model)
    with active_dropout(model, 0.5) as largest:
        assert largest == 0.5 and set(dropout_probabilities(model)) == {0.5}
    assert dropout_probabilities(model) == before and set(before) == {0.1, 0.2}


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "bart", "xlnet", "gpt2"])
def test_dropout_as_a_function_is_active_in_other_architectures(kind):
    """The only dropout left is one that the modules call as a function (attention; layers of BART)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "distilbert": dict(dim=16, n_layers=1, n_heads=2, hidden_dim=24, attention_dropout=0.3),
        "roberta": dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24),
        "bart": dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2)
        | dict(decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64),
        "xlnet": dict(d_model=16, n_layer=1, n_head=2, d_inner=24),
        "gpt2": dict(n_embd=16, n_layer=1, n_head=2),
    }[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=40, num_labels=3, pad_token_id=0, **sizes)
    config.eos_token_id = 2
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    batch = tokens(2)
    batch["input_ids"][:, -1] = 2  # BART reads its prediction from the end of the sentence
    batch["attention_mask"][:] = 1
    with active_dropout(model):
        inside = {name: module.training for name, module in model.named_modules()}
    assert not any(inside[name] for name, module in model.named_modules() if isinstance(module, nn.LayerNorm))
    p = mc_dropout_probabilities(model, batch, 6, seed=0)
    assert len(p[:, 0].unique(dim=0)) == 6
    torch.manual_seed(3)
    with torch.no_grad():
        expected = model.train()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(mc_dropout_probabilities(model, batch, 1, seed=3)[0], expected.softmax(-1))
    model.eval()


def test_layerdrop_stays_off():
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_layerdrop=0.9, num_labels=3,
    )  # fmt: skip
    with active_dropout(transformers.BartForSequenceClassification(config)) as largest:
        assert largest == 0.1
    encoder = transformers.BartForSequenceClassification(config).model.encoder
    with active_dropout(encoder):
        assert not encoder.training and encoder.layers[0].training and encoder.layers[0].self_attn.training
