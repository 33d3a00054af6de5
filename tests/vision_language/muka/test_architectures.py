"""Teachers and students of many architectures: they work, or one line says why not before any work is done."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fairseq_ext.training.errors import InputError
from tests.vision_language.muka.texts import tiny_tokenizer
from vision_language.muka.models import build_classifier, load_classifier
from vision_language.muka.trial import prove_reading, prove_training, set_attention
from vision_language.muka.uncertainty import mc_dropout_probabilities

TEXTS = ("the goal of the race team and some more rain with bread today", "soup")
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"), 3),
    **dict.fromkeys(("n_layer", "n_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads", "n_head", "n_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "hidden_dim", "max_position_embeddings"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "moe_intermediate_size"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    "shared_expert_intermediate_size": 8,
    "vocab_size": 48,
}
NOT_SET = {"xlnet": "max_position_embeddings", "falcon": "head_dim", "reformer": "num_hidden_layers"}
PLAIN = """albert bert roberta distilbert deberta-v2 electra mpnet nomic_bert ibert fnet squeezebert bloom llama opt
gpt_neox rembert roformer mpt""".split()
OTHER = {
    "gpt2": {"pad_token_id": None},
    "qwen3": {"pad_token_id": None},
    "xlnet": {},
    "mobilebert": {"true_hidden_size": 16, "intra_bottleneck_size": 16},
    # a list with an entry for each layer, or with the numbers of some
    "modernbert": {},
    "eurobert": {},
    "gemma2": {},
    "olmo3": {},
    "gpt_oss": {},
    "smollm3": {"no_rope_layers": [1, 1, 0]},
    "qwen2_moe": {"mlp_only_layers": [0, 2]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
}
NO_CUT = {
    "bart": "--num-layers: .*the layers of a bart model are not one stack to cut",
    "umt5": "--num-layers: .*the layers of a umt5 model are not one stack to cut",
}
REFUSED = {
    "canine": ({"num_hash_buckets": 16}, "cannot read the texts: max_pool1d"),
    "reformer": (
        {"attn_layers": ["local"] * 3, "axial_pos_shape": [4, 8], "axial_pos_embds_dim": [8, 8]},
        "cannot be trained on the texts: If training, ",
    ),
}


def write(folder, kind, **changes):
    """A teacher of three layers with random weights."""
    base = CONFIG_MAPPING[kind]()
    sizes = {name: value for name, value in SIZES.items() if hasattr(base, name)}
    for name, other in getattr(type(base), "attribute_map", {}).items():
        if other in sizes:
            sizes.pop(name, None)
    sizes.pop(NOT_SET.get(kind), None)
    padding = {"pad_token_id": 0} if getattr(base, "pad_token_id", None) else {}
    special = {"bos_token_id": 2, "eos_token_id": 3, "id2label": {0: "x", 1: "y", 2: "z"}}
    torch.manual_seed(0)
    config = type(base)(**{**sizes, **padding, **special, **changes})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def outputs(classifier, texts):
    with torch.no_grad():
        return classifier.model(**classifier.tokens(texts).batch(range(len(texts)))).logits


@pytest.mark.parametrize("kind", [*PLAIN, *OTHER])
def test_teacher_and_student(tmp_path, kind):
    folder = write(tmp_path / "teacher", kind, **OTHER.get(kind, {}))
    teacher = load_classifier(folder)
    prove_reading(teacher, TEXTS, 16, hidden_states=True, dropout=0.3)
    together, alone = outputs(teacher, TEXTS), torch.cat([outputs(teacher, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)  # padding does not count
    passes = mc_dropout_probabilities(teacher.model, teacher.tokens(TEXTS).batch([0, 1]), 3, dropout=0.3)
    assert not torch.equal(passes[0], passes[1])

    whole, cut = build_classifier(folder, ["a", "b"]), build_classifier(folder, ["a", "b"], num_layers=2)
    states = cut.model(**cut.tokens(TEXTS).batch([0, 1]), output_hidden_states=True).hidden_states
    assert len(states) == 3  # embeddings and two layers
    kept = cut.model.base_model.state_dict()
    assert all(torch.equal(value, whole.model.base_model.state_dict()[name]) for name, value in kept.items())
    for student in (whole, cut):
        set_attention(student, "auto")
        prove_training(student, TEXTS, 16, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", NO_CUT)
def test_layers_that_cannot_be_cut(tmp_path, kind):
    folder = write(tmp_path / "teacher", kind)
    prove_reading(load_classifier(folder), TEXTS, 16, dropout=0.3)
    prove_training(build_classifier(folder, ["a", "b"]), TEXTS, 16, tmp_path / "out")
    with pytest.raises(InputError, match=NO_CUT[kind]):
        build_classifier(folder, ["a", "b"], num_layers=2)


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_be_used(tmp_path, kind):
    changes, message = REFUSED[kind]
    folder = write(tmp_path / "teacher", kind, **changes)
    with pytest.raises(InputError, match=message) as error:
        prove_training(build_classifier(folder, ["a", "b"]), TEXTS, 16, tmp_path / "out")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_dropout_that_no_option_reaches(tmp_path):
    """Falcon reads it from its configuration: the passes would be alike, and the scores those of a single one."""
    teacher = load_classifier(write(tmp_path, "falcon"))
    with pytest.raises(InputError, match="its dropout cannot be set: use one pass without, --no-mc"):
        prove_reading(teacher, TEXTS, 16, dropout=0.3)
    with pytest.raises(InputError, match=r"a model without dropout, .* set one with --teacher-dropout 0\.1, or use"):
        prove_reading(teacher, TEXTS, 16, dropout=0)
    prove_reading(teacher, TEXTS, 16)


def test_more_layers_than_a_list_knows(tmp_path):
    folder = write(tmp_path / "listed", "modernbert")
    with pytest.raises(InputError, match=r"--num-layers: .* has a layer_types for each of its 3 layers, got 4"):
        build_classifier(folder, ["a", "b"], num_layers=4, from_scratch=True)
    assert build_classifier(folder, ["a", "b"], num_layers=2, from_scratch=True).model.config.num_hidden_layers == 2


@pytest.mark.parametrize(("of_model", "token"), [(None, "[SEP]"), (1, "[UNK]")])
def test_a_tokenizer_without_padding(tmp_path, of_model, token):
    """As GPT-2's: the token that the model takes for padding, or else that which ends a text, takes its place."""
    folder = write(tmp_path / "teacher", "gpt2", pad_token_id=of_model)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            del settings["pad_token"]
            (folder / name).write_text(json.dumps(settings | {"eos_token": "[SEP]"}))
    teacher = load_classifier(folder)
    assert teacher.tokenizer.pad_token == token
    assert teacher.model.config.pad_token_id == teacher.tokenizer.pad_token_id == (of_model or 3)
    prove_reading(teacher, TEXTS, 16)


def test_padding_that_the_model_takes_for_text(tmp_path):
    folder = write(tmp_path / "teacher", "llama", pad_token_id=7)
    with pytest.raises(InputError, match=r"on the padding: padding_side right, pad_token_id 0, in config\.json 7"):
        prove_reading(load_classifier(folder), TEXTS, 16)


def test_attention_that_a_model_does_not_have(tmp_path):
    student = build_classifier(write(tmp_path / "model", "fnet"), ["a", "b"])
    with pytest.raises(InputError, match=r"--attn-implementation sdpa: .*model: FNet"):
        set_attention(student, "sdpa")
    set_attention(student, "auto")
    set_attention(student, "eager")
    assert outputs(student, TEXTS).shape == (2, 2)
