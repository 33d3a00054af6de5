"""The encouraging loss in Hugging Face's Trainer, and fused with the output layer of a causal language model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from fairseq_ext.integrations import FusedCausalLMLoss, encouraging_compute_loss
from fairseq_ext.integrations.trainer import SHIFTS
from fairseq_ext.losses import encouraging_loss
from fairseq_ext.training.errors import DataError, OptionError
from tests.integrations.test_attention import FAMILIES, SPECIAL

BERT = FAMILIES["bert"][1] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = FAMILIES["gpt2"][1] | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
BART = FAMILIES["bart"][1] | {"dropout": 0.0}


def make(name, **sizes):
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**copy.deepcopy(sizes)))


def rows(labels):
    """Four rows; of the labels of words some are ignored, more in later rows."""
    torch.manual_seed(1)
    ids = torch.randint(3, 30, (4, 6))
    if labels == "classes":
        return {"input_ids": ids, "labels": torch.tensor([0, 2, 1, 1])}
    words = ids.clone() if labels == "shifted" else torch.randint(3, 30, (4, 6))
    words[1, 4:], words[2, 2:], words[3, 1:4] = -100, -100, -100
    batch = {"input_ids": ids, "labels": words}
    return batch | {"decoder_input_ids": words.clamp_min(0).roll(1, -1)} if labels == "decoder" else batch


TRAINED = {
    "GPT2LMHeadModel": (GPT2, "shifted"),
    "LlamaForCausalLM": (FAMILIES["llama"][1], "shifted"),
    "BartForConditionalGeneration": (BART, "decoder"),
    "BertForMaskedLM": (BERT, "words"),
    "BertForSequenceClassification": (BERT | {"num_labels": 3}, "classes"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_accumulated_batches_train_like_one_and_like_the_loss_itself(name, tmp_path):
    sizes, labels = TRAINED[name]
    model, batch = make(name, **sizes), rows(labels)
    expected = copy.deepcopy(model).train()
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        **{"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
        **{"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True},
    )
    loss = encouraging_compute_loss(model, arguments, log_end=0.5)
    data = [{key: value[row] for key, value in batch.items()} for row in range(4)]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, compute_loss_func=loss)
    reported = trainer.train().training_loss

    logits = expected(**{key: value for key, value in batch.items() if key != "labels"}).logits
    words = batch["labels"]
    if labels == "shifted":
        logits, words = logits[:, :-1], words[:, 1:]
    value = encouraging_loss(logits.flatten(0, -2), words.flatten(), label_smoothing=0.1, log_end=0.5)
    value.backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    assert reported == pytest.approx(value.item(), rel=1e-5)
    torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()), atol=1e-5, rtol=1e-4)


def test_in_a_loop_of_ones_own():
    model, batch = make("GPT2LMHeadModel", **GPT2), rows("shifted")
    outputs = model(batch["input_ids"])
    expected = encouraging_loss(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss = encouraging_compute_loss(model, None)
    torch.testing.assert_close(loss(outputs, batch["labels"]), expected)
    torch.testing.assert_close(loss(outputs.to_tuple(), batch["labels"], num_items_in_batch=2), expected * 11 / 2)
    plain = encouraging_compute_loss(model, None, bonus_weight=0.0)
    torch.testing.assert_close(plain(outputs, batch["labels"]), model(**batch).loss)
    ignored = torch.full_like(batch["labels"], -100)
    assert loss(outputs, ignored) == 0
    weight = torch.rand(30)
    weighted = encouraging_loss(
        outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), weight, reduction="sum"
    )
    got = encouraging_compute_loss(model, None, weight=weight)(outputs, batch["labels"])
    torch.testing.assert_close(got, weighted / 11)


def test_each_loss_type_shifts_as_transformers_does():
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    assert {name: LOSS_MAPPING[name] is ForCausalLMLoss for name in SHIFTS} == SHIFTS


class Own(nn.Module):
    def forward(self, x):
        return {"logits": x}


class Adapted(Own):
    def __init__(self, model):
        super().__init__()
        self.base = model

    def get_base_model(self):
        return self.base


def test_a_model_of_ones_own_says_whether_it_shifts_and_an_adapted_one_is_looked_into():
    with pytest.raises(OptionError, match=r"Own .* needs shift="):
        encouraging_compute_loss(Own(), None)
    x, labels = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    loss = encouraging_compute_loss(Own(), None, shift=False)({"logits": x}, labels)
    torch.testing.assert_close(loss, encouraging_loss(x.flatten(0, 1), labels.flatten()))
    model = make("GPT2LMHeadModel", **GPT2)
    assert encouraging_compute_loss(Adapted(model), None).shift and model.loss_type == "ForCausalLM"


@pytest.mark.parametrize(
    ("name", "shift"), [("GPT2LMHeadModel", False), ("LlamaForCausalLM", False), ("BertForMaskedLM", True)]
)
def test_whoever_says_whether_labels_are_shifted_is_followed(name, shift):
    """By the loss, and by Trainer, which counts labels by the ``loss_type`` of the model."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    model, batch = make(name, **TRAINED[name][0]), rows("words")
    loss = encouraging_compute_loss(model, None, shift=shift)
    logits, labels = model(batch["input_ids"]).logits, batch["labels"]
    pairs = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
    expected = encouraging_loss(pairs[0].flatten(0, 1), pairs[1].flatten())
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    assert (LOSS_MAPPING.get(model.loss_type) is ForCausalLMLoss) == shift


class Arguments:
    label_smoothing_factor = 0.1


@pytest.mark.parametrize(
    ("name", "sizes", "options", "message"),
    [
        ("GPT2LMHeadModel", {}, {"label_smoothing": 0.2}, "label_smoothing: 0.2 beside label_smoothing_factor=0.1"),
        ("GPT2LMHeadModel", {}, {"ignore_index": 0}, "ignore_index: .*-100"),
        ("GPT2LMHeadModel", {}, {"reduction": "sum"}, "reduction"),
        ("GPT2LMHeadModel", {}, {"log_end": 2.0}, "log_end must be"),
        ("GPT2LMHeadModel", {}, {"logend": 0.5}, "logend"),
        ("BertForQuestionAnswering", {}, {}, "BertForQuestionAnswering .*ForQuestionAnswering"),
        ("BertModel", {}, {}, "BertModel .*loss_type None"),
        ("BertForSequenceClassification", {"num_labels": 1}, {}, "is for regression"),
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            {},
            "multi_label_classification; .*binary_encouraging_loss",
        ),
    ],
)
def test_what_would_be_wrong_or_ignored_is_refused_by_name(name, sizes, options, message):
    model = make(name, **{**(GPT2 if name.startswith("GPT2") else BERT), **sizes})
    with pytest.raises(OptionError, match=message) as error:
        encouraging_compute_loss(model, Arguments(), **options)
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_fit_is_refused():
    loss, logits = encouraging_compute_loss(Own(), None, shift=False), torch.randn(2, 3, 5)
    for labels in (None, torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(DataError, match="labels"):
            loss({"logits": logits}, labels)
    with pytest.raises(OptionError, match="output_router_logits"):
        loss({"logits": logits, "aux_loss": torch.tensor(1.0)}, torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
@pytest.mark.parametrize("options", [{"bonus_weight": 0.0}, {"log_end": 0.5, "label_smoothing": 0.1}])
def test_the_fused_loss_is_that_of_the_logits(name, options):
    model, batch = make(name, **TRAINED[name][0]), rows("shifted")
    mask = torch.tensor([[1] * 6] * 2 + [[1] * 4 + [0] * 2] * 2)
    state = torch.get_rng_state()
    fused = FusedCausalLMLoss(model, **options)
    assert torch.equal(torch.get_rng_state(), state)
    losses, gradients = [], []
    for items in (None, 7):
        plain = encouraging_compute_loss(model, None, **options)
        outputs = model(input_ids=batch["input_ids"], attention_mask=mask)
        for loss in (
            fused(batch["labels"], items, input_ids=batch["input_ids"], attention_mask=mask),
            plain(outputs, batch["labels"], items),
        ):
            model.zero_grad()
            loss.backward()
            losses.append(loss)
            gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    for at in (0, 2):
        torch.testing.assert_close(losses[at], losses[at + 1])
        torch.testing.assert_close(gradients[at], gradients[at + 1], atol=1e-5, rtol=1e-4)
    if options == {"bonus_weight": 0.0}:
        torch.testing.assert_close(losses[0], model(**batch, attention_mask=mask).loss)


LLAMA = FAMILIES["llama"][1]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("Gemma2ForCausalLM", LLAMA | {"head_dim": 4, "final_logit_softcapping": 0.5}, "Gemma2ForCausalLM are not"),
        ("CohereForCausalLM", LLAMA | {"logit_scale": 0.1}, "CohereForCausalLM are not"),
        ("BartForConditionalGeneration", BART, "encoder-decoder"),
        ("MixtralForCausalLM", LLAMA | {"num_local_experts": 2, "output_router_logits": True}, "output_router_logits"),
        ("BertModel", BERT | SPECIAL, "BertModel is no language model"),
    ],
)
def test_a_head_that_is_more_than_a_linear_map_is_refused_by_name(name, sizes, message):
    with pytest.raises(OptionError, match=message):
        FusedCausalLMLoss(make(name, **sizes))


def test_the_fused_loss_refuses_wrong_options_and_several_processes(monkeypatch):
    model = make("GPT2LMHeadModel", **GPT2)
    with pytest.raises(OptionError, match="log_end"):
        FusedCausalLMLoss(model, log_end=2.0)
    with pytest.raises(OptionError, match="reduction"):
        FusedCausalLMLoss(model, reduction="sum")
    with pytest.raises(OptionError, match="Own is no language model"):
        FusedCausalLMLoss(Own())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(OptionError, match="one process"):
        FusedCausalLMLoss(model)
