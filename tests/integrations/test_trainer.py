"""The encouraging loss in Hugging Face's Trainer, and fused with the output layer of a causal language model."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch
import transformers
from torch import nn

from fairseq_ext.integrations import FusedCausalLMLoss, encouraging_compute_loss
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
    for items in (None, 0, torch.tensor(0)):  # Trainer counts 0 where a whole batch is ignored
        assert loss(outputs, ignored, items) == 0
    assert FusedCausalLMLoss(model)(ignored, 0, input_ids=batch["input_ids"]) == 0
    weight = torch.rand(30)
    weighted = encouraging_loss(
        outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), weight, reduction="sum"
    )
    got = encouraging_compute_loss(model, None, weight=weight)(outputs, batch["labels"])
    torch.testing.assert_close(got, weighted / 11)


DECODER = {"vocab_size": 30, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
SPEECH = (
    DECODER | {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 4} | SPECIAL
)
OWN = {
    "GPT2LMHeadModel": (GPT2, True, "ForCausalLM"),  # which has none: Trainer counts by it
    "LlamaForCausalLM": (FAMILIES["llama"][1], True, "ForCausalLM"),
    "BertForMaskedLM": (BERT, False, "ForMaskedLM"),
    "BertForTokenClassification": (BERT | {"num_labels": 3}, False, "ForTokenClassification"),
    "BartForConditionalGeneration": (BART, False, "ForMaskedLM"),
    "WhisperForConditionalGeneration": (SPEECH, False, "ForMaskedLM"),
    "BartForCausalLM": (BART, False, "ForMaskedLM"),
    "TrOCRForCausalLM": (DECODER, False, "ForMaskedLM"),
    "XLNetLMHeadModel": ({"vocab_size": 30, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, False, None),
    "XLMWithLMHeadModel": ({"vocab_size": 30, "emb_dim": 16, "n_layers": 1, "n_heads": 2}, False, None),
}


@pytest.mark.parametrize("name", OWN)
def test_labels_are_shifted_where_the_models_own_loss_shifts_them(name):
    sizes, shift, loss_type = OWN[name]
    model = make(name, **sizes)
    loss = encouraging_compute_loss(model, None, bonus_weight=0.0)
    assert (loss.shift, model.loss_type) == (shift, loss_type)
    if name.startswith("Whisper"):
        return  # hears 3000 frames
    batch, model = rows("decoder" if name == "BartForConditionalGeneration" else "words"), model.eval()
    batch["labels"] = batch["labels"].clamp_max(getattr(model.config, "num_labels", 30) - 1 if "Token" in name else 29)
    own = model(**batch)
    torch.testing.assert_close(loss(own, batch["labels"]), own.loss)


def test_an_own_loss_that_is_another_asks_for_shift():
    sizes = {"hidden_size": 16, "num_decoder_layers": 1, "num_decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    model = make("ProphetNetForCausalLM", vocab_size=30, **sizes)
    with pytest.raises(OptionError, match=r"the loss of ProphetNetForCausalLM is .*: give shift=") as error:
        encouraging_compute_loss(model, None)
    assert "\n" not in str(error.value)
    assert not encouraging_compute_loss(model, None, shift=False).shift


def test_the_trial_leaves_no_trace():
    model = make("BigBirdForMaskedLM", **BERT | {"attention_type": "block_sparse", "hidden_dropout_prob": 0.5})
    model.bert.encoder.eval()
    modes, parts = [part.training for part in model.modules()], repr(model)
    state = torch.get_rng_state()
    assert not encouraging_compute_loss(model, None).shift
    assert torch.equal(torch.get_rng_state(), state)
    assert ([part.training for part in model.modules()], repr(model)) == (modes, parts)
    assert model.bert.attention_type == "block_sparse" and all(value.grad is None for value in model.parameters())
    half = make("GPT2LMHeadModel", **GPT2).bfloat16()
    assert encouraging_compute_loss(half, None).shift and half.dtype == torch.bfloat16


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
        (
            "GPT2LMHeadModel",
            {},
            {"label_smoothing": 0.2},
            "label_smoothing=0.2 and label_smoothing_factor=0.1 are both given",
        ),
        ("GPT2LMHeadModel", {}, {"ignore_index": 0}, "ignore_index: .*-100"),
        ("GPT2LMHeadModel", {}, {"reduction": "sum"}, "reduction"),
        ("GPT2LMHeadModel", {}, {"log_end": 2.0}, "log_end must be"),
        ("GPT2LMHeadModel", {}, {"logend": 0.5}, "logend"),
        ("GPT2LMHeadModel", {}, {"class_weight": torch.ones(30)}, "class_weight: .*called weight here"),
        ("GPT2LMHeadModel", {}, {"weight": torch.ones(29)}, r"weight must hold one weight for each of 30 classes.*29"),
        ("GPT2LMHeadModel", {}, {"shift": True, "weight": torch.ones(30, 1)}, "weight must hold one weight for each"),
        ("BertForSequenceClassification", {"num_labels": 3}, {"weight": torch.ones(2)}, "weight must .* 3 classes"),
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
    with pytest.raises(OptionError, match=r"weight: .*called class_weight here"):
        FusedCausalLMLoss(model, weight=torch.ones(30))
    with pytest.raises(OptionError, match=r"class_weight must .* 30 classes.*\(29,\)"):
        FusedCausalLMLoss(model, class_weight=torch.ones(29))
    with pytest.raises(OptionError, match="Own is no language model"):
        FusedCausalLMLoss(Own())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(OptionError, match="one process"):
        FusedCausalLMLoss(model)


@pytest.mark.parametrize("tied", [True, False])
def test_the_fused_loss_follows_a_head_that_is_replaced(tied):
    model, batch = make("GPT2LMHeadModel", **GPT2, tie_word_embeddings=tied), rows("shifted")
    loss = FusedCausalLMLoss(model, bonus_weight=0.0)
    model.resize_token_embeddings(40)
    value = loss(batch["labels"] + 10 * (batch["labels"] > 0), input_ids=batch["input_ids"] + 10)
    value.backward()
    assert model.lm_head.weight.grad.shape == (40, 16) and model.lm_head.weight.grad[30:].any()
    inputs, labels = {"input_ids": batch["input_ids"] + 10}, batch["labels"] + 10 * (batch["labels"] > 0)
    torch.testing.assert_close(value, model(**inputs, labels=labels).loss)
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    with torch.no_grad():
        model.lm_head.parametrizations.weight.original0.mul_(2)
    torch.testing.assert_close(loss(labels, **inputs), model(**inputs, labels=labels).loss)
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(OptionError, match="output layer of GPT2LMHeadModel is Sequential"):
        loss(labels, **inputs)


class Prompted(Adapted):
    """As PEFT wraps a model: its adapters are inside, or come before the input."""

    def __init__(self, model, prefix):
        super().__init__(model)
        self.prefix = prefix

    def forward(self, input_ids, **kwargs):
        prefix = torch.full((len(input_ids), self.prefix), 3)
        outputs = self.base(torch.cat([prefix, input_ids], 1), **kwargs)
        outputs.logits = outputs.logits[:, self.prefix :]
        return outputs


def test_the_fused_loss_looks_into_a_wrapper_and_refuses_one_that_changes_the_input():
    model, batch = make("GPT2LMHeadModel", **GPT2), rows("shifted")
    value = FusedCausalLMLoss(Prompted(model, 0), bonus_weight=0.0)(batch["labels"], input_ids=batch["input_ids"])
    torch.testing.assert_close(value, model(**batch).loss)
    with pytest.raises(OptionError, match="Prompted are not a linear map"):
        FusedCausalLMLoss(Prompted(model, 1))


@pytest.mark.parametrize("part", ["", "base", "base.lm_head"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_a_hook_that_would_not_be_called_is_refused_at_every_call(part, kind):
    model, batch = Prompted(make("GPT2LMHeadModel", **GPT2), 0), rows("shifted")
    loss = FusedCausalLMLoss(model)
    hook = getattr(model.get_submodule(part), f"register_{kind}")(lambda *_: None)
    for call in (lambda: loss(batch["labels"], input_ids=batch["input_ids"]), lambda: FusedCausalLMLoss(model)):
        with pytest.raises(OptionError, match=r"(Prompted|GPT2LMHeadModel|Linear) has hooks"):
            call()
    hook.remove()
    loss(batch["labels"], input_ids=batch["input_ids"])


def test_the_fused_loss_evaluates_in_inference_mode():
    model, batch = make("GPT2LMHeadModel", **GPT2).eval(), rows("shifted")
    loss = FusedCausalLMLoss(model, bonus="power", class_weight=torch.rand(30))
    expected = loss(batch["labels"].int(), input_ids=batch["input_ids"])
    with torch.inference_mode():
        torch.testing.assert_close(loss(batch["labels"], input_ids=batch["input_ids"]), expected)


def test_a_wrapped_forward_is_refused(monkeypatch):
    model, batch = make("GPT2LMHeadModel", **GPT2), rows("shifted")
    loss = FusedCausalLMLoss(model)
    monkeypatch.setattr(accelerate.state.AcceleratorState, "_shared_state", {})  # one precision a process
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(model)
    for made in (FusedCausalLMLoss, lambda model: loss(batch["labels"], input_ids=batch["input_ids"])):
        with pytest.raises(OptionError, match=r"mixed precision .*unwrap_model\(model, keep_fp32_wrapper=False\)"):
            made(prepared)
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    with accelerator.autocast():
        value = FusedCausalLMLoss(plain, bonus_weight=0.0)(batch["labels"], input_ids=batch["input_ids"])
        torch.testing.assert_close(value, plain(**batch).loss, atol=1e-2, rtol=0)
