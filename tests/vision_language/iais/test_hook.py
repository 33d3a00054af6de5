"""Which models the hook takes: small random ones of Hugging Face, whose own attentions the maps must equal."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tests.vision_language.iais.regions import tiny_model
from tests.vision_language.iais.test_blocks import renormalised
from vision_language.iais.alignment import iais_loss
from vision_language.iais.hook import IAISHook

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30)
SIZES |= dict(max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=2)
SIZES |= dict(visual_embedding_dim=5, image_size=8, patch_size=4, embedding_size=16)
TOKENS = {"input_ids": torch.arange(22).view(2, 11) + 3, "attention_mask": torch.ones(2, 11, dtype=torch.long)}
WORDS = {name: value[:, :6] for name, value in TOKENS.items()}
VISUAL = WORDS | {"visual_embeds": torch.linspace(-1, 1, 50).view(2, 5, 5)}
PIXELS = WORDS | {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
PHRASES = VISUAL | {
    "visual_attention_mask": torch.ones(2, 5),
    "region_to_phrase_position": torch.zeros(2, 11, dtype=torch.long),
}
SINGLE_STREAM = {
    "BertModel": TOKENS,
    "BertForMaskedLM": TOKENS,
    "RobertaModel": TOKENS,
    "RobertaForSequenceClassification": TOKENS,
    "XLMRobertaModel": TOKENS,
    "ElectraModel": TOKENS,
    "ErnieModel": TOKENS,
    "AlbertModel": TOKENS,
    "MegatronBertModel": TOKENS,
    "LayoutLMModel": TOKENS,
    "ConvBertModel": TOKENS,
    "VisualBertModel": VISUAL,
    "VisualBertForPreTraining": VISUAL,
    "VisualBertForQuestionAnswering": VISUAL,
    "VisualBertForVisualReasoning": VISUAL,
    "VisualBertForMultipleChoice": {name: value[:, None] for name, value in VISUAL.items()},
    "VisualBertForRegionToPhraseAlignment": PHRASES,
    "ViltModel": PIXELS,
    "ViltForQuestionAnswering": PIXELS,
    "ViltForImageAndTextRetrieval": PIXELS,
    "FlavaMultimodalModel": {"hidden_states": torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(0))},
}
REFUSED = {
    "LxmertModel": "x_layers.0.visual_attention.att (LxmertAttention) beside",
    "LxmertForQuestionAnswering": "x_layers.0.visual_attention.att (LxmertAttention) beside",
    "BlipTextModel": "crossattention.self (BlipTextSelfAttention) beside",
    "Blip2QFormerModel": "crossattention.attention (Blip2QFormerMultiHeadAttention) beside",
    "RoFormerModel": "RoFormerSelfAttention of RoFormerModel takes sinusoidal_pos beside",
    "LayoutLMv3Model": "LayoutLMv3SelfAttention of LayoutLMv3Model takes rel_pos beside",
    "EsmModel": "EsmSelfAttention of EsmModel takes position_embeddings beside",
    "LiltModel": "LiltSelfAttention of LiltModel takes layout_inputs beside",
    "NystromformerModel": "NystromformerSelfAttention of NystromformerModel has conv beside",
    "CLIPTextModel": "has no self-attention with query",
}
TOWERS = {
    "GitModel": "image_encoder (GitVisionModel) beside encoder.layer",
    "AlignModel": "vision_model (AlignVisionModel) beside text_model",
    "AltCLIPModel": "vision_model (AltCLIPVisionModel) beside text_model",
    "BlipForImageTextRetrieval": "crossattention.self (BlipTextSelfAttention) beside text_encoder",
    "BridgeTowerModel": "cross_modal_image_layers.0.attention.self (BridgeTowerSelfAttention) beside text_model",
    "FlavaModel": "image_model.encoder.layer.0.attention.attention (FlavaSelfAttention) beside text_model",
}


def made(name: str, **changes) -> nn.Module:
    """A random model of a class of transformers."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**SIZES | changes)).eval()
    for path, weight in model.named_parameters():
        if "query" in path or "key" in path:
            nn.init.normal_(weight, std=0.4)  # maps that are far from uniform
    return model


@pytest.mark.parametrize("name", SINGLE_STREAM)
def test_maps_are_those_of_the_last_layer(name):
    model = made(name, attn_implementation="eager")
    with IAISHook(model) as hook:
        torch.manual_seed(1)  # ViLT draws the order of its patches
        attentions = model(**SINGLE_STREAM[name], output_attentions=True).attentions[-1]
        text = torch.zeros(2, attentions.size(-1), dtype=torch.bool)
        region = text.clone()
        text[:, 1:5], region[:, 7:] = True, True
        blocks = hook.blocks(text, region)
    for short, maps in zip(("ll", "vv", "lv", "vl"), renormalised(attentions, text, region), strict=True):
        torch.testing.assert_close(getattr(blocks, short), torch.stack(maps), rtol=1e-4, atol=1e-5)
    assert blocks.lv.std() > 0.05 and iais_loss(blocks) > 0


def test_the_retriever_is_hooked_at_its_last_layer():
    model = tiny_model(3)
    assert IAISHook(model).attention is model.encoder.layer[-1].attention.self


@pytest.mark.parametrize("name", REFUSED)
def test_models_of_other_maps_are_refused_by_name(name):
    with pytest.raises(ValueError, match="IAISHook: ") as error:
        IAISHook(made(name))
    assert name in str(error.value) and REFUSED[name] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", TOWERS)
def test_models_of_two_streams_are_refused_by_name(name):
    kind = getattr(transformers, name)
    with torch.device("meta"):  # their parts have configurations of their own, of the published size
        model = kind(kind.config_class())
    with pytest.raises(ValueError, match="IAISHook: ") as error:
        IAISHook(model)
    assert name in str(error.value) and TOWERS[name] in str(error.value) and "\n" not in str(error.value)


def test_a_tower_of_plain_modules_is_refused():
    """As those of models that are not of transformers."""
    model = nn.ModuleDict({"text": made("BertModel"), "image": nn.ModuleList([nn.MultiheadAttention(16, 2)])})
    with pytest.raises(ValueError, match=r"ModuleDict has image \(ModuleList\) beside text.encoder.layer.1"):
        IAISHook(model)


def test_attention_that_looks_back_is_refused():
    with pytest.raises(ValueError, match="BertSelfAttention of BertLMHeadModel looks back only"):
        IAISHook(made("BertLMHeadModel", is_decoder=True))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hidden_positions_are_no_words_or_regions(implementation):
    model = made("BertModel", attn_implementation=implementation)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 9:] = 0
    text, region = torch.zeros(2, 11, dtype=torch.bool), torch.zeros(2, 11, dtype=torch.bool)
    text[:, 1:4], region[:, 5:9] = True, True
    with IAISHook(model) as hook:
        model(TOKENS["input_ids"], attention_mask=mask)
        hook.blocks(text, region)
        region[:, 9:] = True
        model(TOKENS["input_ids"], attention_mask=mask)
        with pytest.raises(ValueError, match="the model's attention mask hides a word or region"):
            hook.blocks(text, region)
        model(TOKENS["input_ids"], attention_mask=mask)
        hook.blocks(text, region, rows=torch.tensor([0]))


def test_a_compiled_model_gets_its_hook_first():
    text, region = torch.zeros(2, 11, dtype=torch.bool), torch.zeros(2, 11, dtype=torch.bool)
    text[:, 1:4], region[:, 5:] = True, True
    model = made("BertModel", num_hidden_layers=1)
    model.compile(backend="eager")
    torch.compiler.reset()
    with IAISHook(model) as hook:
        for _ in range(2):
            model(**TOKENS)
            with_hook = hook.blocks(text, region).lv
    plain = made("BertModel", num_hidden_layers=1)
    with IAISHook(plain) as hook:
        plain(**TOKENS)
        torch.testing.assert_close(hook.blocks(text, region).lv, with_hook)
    torch.compiler.reset()
    late = torch.compile(made("BertModel", num_hidden_layers=1), backend="eager")
    late(**TOKENS)
    with IAISHook(late) as hook:
        late(**TOKENS)
        with pytest.raises(RuntimeError, match="a model that was compiled and run before it got its hook"):
            hook.blocks(text, region)
