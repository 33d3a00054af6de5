"""Top-k attention in Hugging Face models: tiny ones with random weights, as nothing is downloaded."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from fairseq_ext.integrations import register_attention
from fairseq_ext.training.errors import OptionError

K = 2
SIZES = {"vocab_size": 30, "initializer_range": 0.6}
ENCODER = SIZES | {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32},
    **{"max_position_embeddings": 32},
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STACKS = {"vocab_size": 30, "init_std": 0.6, "d_model": 16, "max_position_embeddings": 32, **SPECIAL} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 32}.items()
}
FAMILIES = {
    "bert": ("BertModel", ENCODER),
    "gpt2": ("GPT2LMHeadModel", SIZES | SPECIAL | {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "llama": ("LlamaForCausalLM", ENCODER | SPECIAL | {"num_key_value_heads": 2}),
    "mistral": ("MistralForCausalLM", ENCODER | SPECIAL | {"num_key_value_heads": 2, "sliding_window": 4}),
    "bart": ("BartForConditionalGeneration", STACKS | {"decoder_start_token_id": 2, "forced_eos_token_id": None}),
    "marian": ("MarianMTModel", STACKS | {"decoder_start_token_id": 0, "forced_eos_token_id": None}),
    "vit": ("ViTModel", {**ENCODER, "image_size": 8, "patch_size": 2, "num_channels": 1}),
}
GENERATORS = ["gpt2", "llama", "mistral", "bart", "marian"]
LEFT_PADDED = ("gpt2", "llama", "mistral")


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_attention(k=K, name="few")
    register_attention(k=1, name="one")
    register_attention(k=99, name="many")
    register_attention(k=0, name="entmax", normalizer="entmax15")
    AttentionInterface.register("reference", reference)
    AttentionMaskInterface.register("reference", sdpa_mask)


def reference(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
    """A softmax over the K best of each sorted row."""
    key, value = (states.repeat_interleave(query.size(1) // key.size(1), 1) for states in (key, value))
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) * scaling
    if attention_mask is None and query.size(2) > 1 and getattr(module, "is_causal", False):
        attention_mask = torch.arange(key.size(2)) <= torch.arange(query.size(2))[:, None]
    if attention_mask is not None:
        scores = torch.where(attention_mask, scores, -1e9)
    best = scores.sort(-1, descending=True)
    weights = torch.zeros_like(scores).scatter(-1, best.indices[..., :K], best.values[..., :K].softmax(-1))
    return torch.einsum("bhts,bhsd->bthd", weights, value), None


def make(family, implementation):
    name, sizes = FAMILIES[family]
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    config = model_class.config_class(**copy.deepcopy(sizes))
    return model_class._from_config(config, attn_implementation=implementation).double().eval()


def inputs_of(family):
    """A batch whose second row is padded, and where the output of what is not padding lies."""
    torch.manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8).double()}, slice(None)
    ids, mask = torch.randint(3, 30, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    padding = (1, slice(0, 3) if family in LEFT_PADDED else slice(4, 7))
    ids[padding], mask[padding] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family in ("bart", "marian"):
        return inputs | {"decoder_input_ids": torch.randint(3, 30, (2, 5))}, slice(None)
    if family in LEFT_PADDED:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return inputs, mask.bool()


@pytest.mark.parametrize("family", FAMILIES)
def test_with_every_key_it_is_sdpa_and_with_few_the_reference(family):
    inputs, at = inputs_of(family)
    outputs, gradients = {}, {}
    for name in ("sdpa", "many", "few", "reference"):
        model = make(family, name)
        outputs[name] = model(**inputs)[0][at]
        if name in ("few", "reference"):
            outputs[name].square().mean().backward()
            gradients[name] = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    torch.testing.assert_close(outputs["many"], outputs["sdpa"], atol=1e-6, rtol=0)
    assert (outputs["few"] - outputs["sdpa"]).abs().max() > 1e-2
    torch.testing.assert_close(outputs["few"], outputs["reference"], atol=1e-9, rtol=0)
    assert len(gradients["few"]) > 10
    torch.testing.assert_close(gradients["few"], gradients["reference"], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "vit"])
def test_padding_changes_nothing(family):
    model, (inputs, _) = make(family, "few"), inputs_of(family)
    kept = inputs["attention_mask"][1].bool()
    alone = {
        name: value[1:] if name.startswith("decoder") else value[1:, kept]
        for name, value in inputs.items()
        if name != "attention_mask"
    }
    batched = model(**inputs)[0][1:]
    torch.testing.assert_close(
        batched if "decoder_input_ids" in inputs else batched[:, kept], model(**alone)[0], atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("family", GENERATORS)
def test_generation_with_a_cache_is_that_without(family):
    model, (inputs, _) = make(family, "few"), inputs_of(family)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def generate(model, **options):
        options |= {"max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
        outputs = model.generate(**inputs, **options)
        return outputs.sequences, torch.stack(outputs.logits)

    plain = generate(model, use_cache=False)
    torch.testing.assert_close(generate(model), plain, atol=1e-9, rtol=0)
    static = generate(model, cache_implementation="static", disable_compile=True)
    torch.testing.assert_close(static, plain, atol=1e-9, rtol=0)
    assert (generate(make(family, "sdpa"))[1][0] - plain[1][0]).abs().max() > 1e-3


def test_a_beam_with_a_cache_is_that_without():
    model, (inputs, _) = make("gpt2", "few"), inputs_of("gpt2")
    options = {"max_new_tokens": 5, "num_beams": 3, "input_ids": inputs["input_ids"][:1]}
    assert torch.equal(model.generate(**options), model.generate(**options, use_cache=False))


def test_two_settings_and_other_normalizers_stay_apart():
    inputs, at = inputs_of("llama")
    names = ("few", "one", "entmax", "sdpa")
    models = {name: make("llama", name) for name in names}
    outputs = {name: model(**inputs)[0][at] for name, model in models.items()}
    assert all((outputs[a] - outputs[b]).abs().max() > 1e-3 for a in names for b in names if a < b)
    assert torch.equal(models["few"](**inputs)[0][at], outputs["few"])
    models["sdpa"].set_attn_implementation("one")
    assert torch.equal(models["sdpa"](**inputs)[0][at], outputs["one"])


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_the_weights_on_request_are_those_of_the_selected_keys(family):
    model, (inputs, _) = make(family, "few"), inputs_of(family)
    outputs = model(**inputs, output_attentions=True)
    torch.testing.assert_close(outputs[0], model(**inputs)[0], atol=1e-9, rtol=0)
    weights = [outputs.attentions] if family == "bert" else [outputs.cross_attentions, outputs.encoder_attentions]
    for layers in weights:
        assert [((layer > 0).sum(-1) == K).all().item() for layer in layers] == [True, True]


def test_dropout_falls_on_the_weights():
    attention, states = AttentionInterface()["few"], torch.randn(1, 2, 40, 40)
    module = nn.Module()
    value = torch.eye(40).expand_as(states)
    context = attention(module, states, states, value, None, dropout=0.5)[0]
    kept = context[context > 0]
    dense = attention(module, states, states, value, None)[0]
    torch.testing.assert_close(kept, 2 * dense[context > 0])
    assert 0.3 < len(kept) / (dense > 0).sum() < 0.7
    nothing = attention(module, states, states, value, None, dropout=1.0, output_attentions=True)[0]
    assert not nothing.any()


def test_half_precision_and_a_query_without_keys():
    attention, states = AttentionInterface()["few"], torch.randn(1, 2, 5, 8).bfloat16()
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 3:] = torch.finfo(torch.float32).min
    float_mask = attention(nn.Module(), states, states, states, mask)[0]
    boolean = attention(nn.Module(), states, states, states, mask == 0)[0]
    assert float_mask.dtype == torch.bfloat16
    torch.testing.assert_close(float_mask, boolean)
    empty = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    assert not attention(nn.Module(), states, states, states, empty)[0].any()


@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_all_keys_in_half_precision_are_the_attention_of_torch(dtype, output_attentions):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 9, 16) * size for size in (20, 20, 1))
    states = [x.to(dtype) for x in (query, key, value)]
    context, weights = AttentionInterface()["many"](nn.Module(), *states, None, output_attentions=output_attentions)
    expected = F.scaled_dot_product_attention(*(x.double() for x in states)).transpose(1, 2)
    assert context.dtype == dtype and (weights is None or weights.dtype == dtype)
    assert (context.double() - expected).abs().max() < 4 * torch.finfo(dtype).eps


REFUSED = {
    "T5Stack .*: T5Attention computes": lambda: transformers.T5Config(d_model=8, d_ff=8, num_layers=1, vocab_size=9),
    "OpenAIGPTModel .*: Attention computes": lambda: transformers.OpenAIGPTConfig(
        n_embd=8, n_layer=1, n_head=2, vocab_size=9
    ),
    "GPTJModel .*: it takes what is in its GPTJ_ATTENTION_CLASSES": lambda: transformers.GPTJConfig(
        n_embd=8, n_layer=1, n_head=2, vocab_size=9, rotary_dim=2
    ),
    "FNetModel .*: no attention": lambda: transformers.FNetConfig(hidden_size=8, num_hidden_layers=1, vocab_size=9),
    # Its other attentions go through the interface.
    "SiglipVisionModel .*: MultiheadAttention computes": lambda: transformers.SiglipVisionConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=32
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_model_that_would_ignore_it_is_refused_by_name(message):
    with pytest.raises(OptionError, match=message) as error:
        transformers.AutoModel.from_config(REFUSED[message](), attn_implementation="few")
    assert "\n" not in str(error.value) and error.value.code == 2
    model = transformers.AutoModel.from_config(REFUSED[message]())
    with pytest.raises(OptionError, match="does not go through"):
        model.set_attn_implementation("few")
    model.set_attn_implementation("eager")


def test_a_part_of_a_model_may_keep_another_attention():
    sizes = ENCODER | SPECIAL | {"projection_dim": 8}
    config = transformers.SiglipConfig(
        text_config=sizes | SIZES, vision_config=sizes | {"image_size": 8, "patch_size": 4}
    )
    with pytest.raises(OptionError, match=r"SiglipVisionModel .*MultiheadAttention"):
        transformers.SiglipModel._from_config(copy.deepcopy(config), attn_implementation="few")
    parts = {"text_config": "few", "vision_config": "sdpa"}
    model = transformers.SiglipModel._from_config(copy.deepcopy(config), attn_implementation=parts)
    assert model.text_model.config._attn_implementation == "few"
    model = transformers.SiglipModel._from_config(config)
    model.set_attn_implementation(parts)
    assert model.text_model.config._attn_implementation == "few"
    with pytest.raises(OptionError, match=r"SiglipVision.*MultiheadAttention"):
        model.set_attn_implementation({"vision_config": "few"})


def test_what_it_does_not_compute_is_refused_by_name():
    gemma = {**ENCODER, "head_dim": 4, "num_key_value_heads": 2, "attn_logit_softcapping": 5.0}
    model = transformers.Gemma2Model._from_config(transformers.Gemma2Config(**gemma), attn_implementation="few")
    with pytest.raises(OptionError, match="Gemma2Attention asks for softcap"):
        model(torch.tensor([[3, 4]]))
    attention, states = AttentionInterface()["few"], torch.randn(1, 2, 5, 8)
    for other in ({"s_aux": torch.zeros(2)}, {"indices": 3}, {"not_yet_known": 0.5}):
        with pytest.raises(OptionError, match=next(iter(other))):
            attention(nn.Module(), states, states, states, None, **other)
    with pytest.raises(OptionError, match="sliding window"):
        attention(nn.Module(), states, states, states, None, sliding_window=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3, "name": "few"}, "'few' is .*k=2"),
        ({"name": "sdpa"}, "'sdpa' must not contain .*sdpa: transformers gives"),
        ({"name": "my-flash"}, "'my-flash' must not contain eager or flash"),
        ({"name": "org/kernel"}, "name: must be a word of .*, got 'org/kernel'"),
        ({"name": "reference"}, "'reference' is the attention of somebody else"),
        ({"k": 2.5, "name": "x"}, "k: must be a whole number, got 2.5"),
        ({"k": -1, "name": "x"}, "k must be"),
        ({"name": "x", "normalizer": "softmin"}, "normalizer must be"),
        ({"name": "x", "normalizer": "sparsemax"}, "k or ratio needs normalizer"),
        ({"k": 0, "name": "x", "normalizer": "entmax-bisect", "alpha": math.inf}, "alpha must be"),
        ({"name": "x", "select": "window"}, "position of the query"),
        ({"name": "x", "select": "heads", "straight_through": True}, "straight_through"),
    ],
)
def test_a_wrong_setting_is_refused_and_not_registered(options, message):
    with pytest.raises(OptionError, match=message):
        register_attention(**options)
    assert "x" not in AttentionInterface().valid_keys()
    register_attention(k=K, name="few")  # the same again is fine


BIDIRECTIONAL = {
    "SplinterModel": transformers.SplinterConfig,
    "ClapTextModel": transformers.ClapTextConfig,
    "AlignTextModel": transformers.AlignTextConfig,
    "LayoutLMModel": transformers.LayoutLMConfig,
    "RobertaModel": transformers.RobertaConfig,
}


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_an_encoder_stays_one_without_padding(name):
    """Without padding transformers passes no mask to it, whether its attention has an is_causal or not."""
    config = BIDIRECTIONAL[name](**ENCODER, pad_token_id=0)
    modeling = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
    outputs = []
    for implementation in ("eager", "many"):
        torch.manual_seed(0)
        model = getattr(modeling, name)._from_config(config, attn_implementation=implementation)
        outputs.append(model.eval()(torch.tensor([[5, 6, 7, 8]]))[0])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


# Their attentions say is_causal=False in the decoder too: transformers knows them for "eager" alone.
UNKNOWN_TO_SDPA = {
    "bigbird_pegasus": ("BigBirdPegasusForCausalLM", STACKS),
    "nllb_moe": ("NllbMoeForConditionalGeneration", STACKS | {
        **{"num_experts": 2, "encoder_sparse_step": 9, "decoder_sparse_step": 9, "decoder_start_token_id": 2},
    }),
}  # fmt: skip


@pytest.mark.parametrize("implementation", ["few", "many"])
@pytest.mark.parametrize("family", [*GENERATORS, *UNKNOWN_TO_SDPA])
def test_no_position_sees_the_future(family, implementation, monkeypatch):
    """Without padding, where transformers leaves a causal mask to is_causal if it may."""
    monkeypatch.setattr(f"{__name__}.FAMILIES", FAMILIES | UNKNOWN_TO_SDPA)
    model, tokens = make(family, implementation), torch.randint(3, 30, (1, 7))
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    inputs = {"input_ids": tokens} if name == "input_ids" else {"input_ids": tokens, name: tokens}
    changed = inputs | {name: torch.cat([tokens[:, :-1], 32 - tokens[:, -1:]], 1)}
    before, after = (model(**x).logits for x in (inputs, changed))
    torch.testing.assert_close(before[:, :-1], after[:, :-1], atol=1e-9, rtol=0)
    if family in UNKNOWN_TO_SDPA and implementation == "many":
        eager = make(family, "eager")(**inputs).logits
        torch.testing.assert_close(before, eager, atol=1e-6, rtol=0)


def test_a_mask_is_left_out_where_every_key_is_seen_alone():
    """So that encoders keep the path without one; a causal mask is always there."""
    from transformers.masking_utils import causal_mask_function

    make_mask = AttentionMaskInterface()["few"]
    sizes = {"batch_size": 1, "q_length": 3, "kv_length": 3, "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert make_mask(**sizes, allow_is_causal_skip=False, allow_is_bidirectional_skip=True) is None
    mask = make_mask(**sizes, mask_function=causal_mask_function)
    assert torch.equal(mask[0, 0], torch.ones(3, 3, dtype=torch.bool).tril())
