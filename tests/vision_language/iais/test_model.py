"""The retriever: the released model's scores, losses and gradients; shared sides, UNITER weights, folders."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from fairseq_ext.training.errors import CheckpointError, InputError, OptionError
from fairseq_ext.training.files import load_safely
from tests.helpers import golden_names, load_golden
from tests.vision_language.iais.regions import THINGS, tiny_config, tiny_model, tiny_tokenizer
from vision_language.iais.alignment import iais_loss
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever, RegionRetrieverConfig

ITM = golden_names("iais", "itm_case")
ENCODER = golden_names("iais", "encoder_case")
MODES = [(side, kind) for side in "LV" for kind in ("singular", "distributed")]
TOLERANCE = {"rtol": 0, "atol": 1e-10}


def tensors(name):
    return {key: torch.from_numpy(value) for key, value in load_golden("iais", name).items()}


def weights_of(golden):
    return {key[2:]: value for key, value in golden.items() if key.startswith("w.")}


def golden_model(golden):
    """The model of an itm_case: sizes read off the weights, dropout 0."""
    weights = weights_of(golden)
    words, hidden = weights["uniter.embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=int(golden["num_layers"]),
        num_attention_heads=int(golden["num_heads"]),
        intermediate_size=len(weights["uniter.encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(weights["uniter.embeddings.position_embeddings.weight"]),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    size = weights["uniter.img_embeddings.img_linear.weight"].size(1)
    model = RegionRetriever.from_encoder(config, region_feature_size=size).double()
    model.load_uniter(weights)
    return model


def golden_batch(golden):
    """Texts and regions, the shared side with one row."""
    split = golden["in_input_ids"].size(1)
    text_mask, region_mask = golden["in_attn_masks"][:, :split], golden["in_attn_masks"][:, split:]
    texts = {"input_ids": golden["in_input_ids"], "attention_mask": text_mask[: len(golden["in_input_ids"])]}
    regions = {
        "region_boxes": golden["in_img_pos_feat"],
        "region_mask": region_mask[: len(golden["in_img_feat"])].bool(),
        "region_features": golden["in_img_feat"],
    }
    return texts, regions


class TestReleasedModel:
    @pytest.mark.parametrize("name", ITM)
    def test_scores(self, name):
        golden = tensors(name)
        model = golden_model(golden)
        texts, regions = golden_batch(golden)
        expected = golden["rank_scores"]
        torch.testing.assert_close(model(**texts, **regions).scores, expected, **TOLERANCE)
        position_ids = golden["in_position_ids"]
        torch.testing.assert_close(model(**texts, **regions, position_ids=position_ids).scores, expected, **TOLERANCE)
        torch.testing.assert_close(model.eval().score_pairs(texts, regions).flatten(), expected, **TOLERANCE)
        top = model.score_pairs(texts, regions).flatten()[1:].topk(int(golden["hard_size"])).indices + 1
        assert top.sort().values.tolist() == golden["hard_idx_sorted"].tolist()

    @pytest.mark.parametrize("kind", ["singular", "distributed"])
    @pytest.mark.parametrize("name", ITM)
    def test_hard_negative_step(self, name, kind):
        golden = tensors(name)
        model = golden_model(golden).train()
        texts, regions = golden_batch(golden)
        rows = torch.cat((torch.tensor([0]), golden["hard_idx_sorted"]))
        by_text = len(texts["input_ids"]) == 1
        anchored = regions if by_text else texts
        anchored |= {key: value[rows] for key, value in anchored.items()}
        with IAISHook(model) as hook:
            scores = model(**texts, **regions).scores.sigmoid()
            masks = texts["attention_mask"], regions["region_mask"]
            blocks = hook.blocks(*model.positions(*masks), rows=slice(1))
        rank_loss = (golden["margin"] + scores[1:] - scores[0]).clamp_min(0)
        torch.testing.assert_close(rank_loss.sort().values, golden[f"rank_loss_sorted_{kind}"], **TOLERANCE)
        alignment = iais_loss(blocks, kind, "L" if by_text else "V")
        torch.testing.assert_close(alignment, golden[f"iais_loss_{kind}"], **TOLERANCE)
        total = rank_loss.mean() / 8 + 0.25 * alignment
        torch.testing.assert_close(total, golden[f"total_{kind}"], **TOLERANCE)
        total.backward()
        parameters = dict(model.named_parameters())
        gradients = {key.split(".", 1)[1]: value for key, value in golden.items() if key.startswith(f"grad_{kind}.")}
        assert len(gradients) == 6
        for key, value in gradients.items():
            torch.testing.assert_close(parameters[key.removeprefix("uniter.")].grad, value, **TOLERANCE)

    @pytest.mark.parametrize(("side", "kind"), MODES)
    @pytest.mark.parametrize("name", ENCODER)
    def test_alignment_through_the_encoder(self, name, side, kind):
        golden = tensors(name)
        weights = weights_of(golden)
        config = tiny_config(
            hidden_size=golden["x"].size(-1),
            num_hidden_layers=int(golden["num_layers"]),
            num_attention_heads=int(golden["num_heads"]),
            intermediate_size=len(weights["layer.0.intermediate.dense.bias"]),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model = RegionRetriever.from_encoder(config, region_feature_size=1).double()
        model.encoder.load_state_dict(weights)
        x = golden["x"].clone().requires_grad_()
        mask = golden["full_mask"].bool()
        masks = mask.split([int(golden["max_tl"]), mask.size(1) - int(golden["max_tl"])], 1)
        rows = torch.arange(0, len(x), int(golden["pairs_num"]))
        text, region = model.positions(*masks)
        assert torch.equal(text[rows], golden["txt_mask"].bool())
        assert torch.equal(region[rows], golden["img_mask"].bool())
        with IAISHook(model.encoder) as hook:
            additive = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -1e9)[:, None, None]
            output = model.encoder(x, attention_mask=additive).last_hidden_state
            torch.testing.assert_close(hook.hidden, golden["hidden_last_in"], **TOLERANCE)
            blocks = hook.blocks(text, region, rows=rows)
        torch.testing.assert_close(output, golden["encoder_out"], **TOLERANCE)
        loss = iais_loss(blocks, kind, side)
        torch.testing.assert_close(loss, golden[f"loss_{side}_{kind}"], **TOLERANCE)
        loss.backward()
        torch.testing.assert_close(x.grad, golden[f"grad_x_{side}_{kind}"], **TOLERANCE)
        for part in ("query.weight", "query.bias", "key.weight", "key.bias"):
            gradient = model.encoder.layer[-1].attention.self.get_parameter(part).grad
            torch.testing.assert_close(gradient, golden[f"grad_{side}_{kind}_{part}"], **TOLERANCE)


def random_sides(texts, images, seed=0, words=6, regions=5, feature_size=0):
    """Padded captions and images of random lengths, at least one word and one region each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, low=0, high=1):
        return torch.randint(low, high + 1, shape, generator=generator)

    lengths = draw(texts, low=3, high=words)
    attention_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = draw(*attention_mask.shape, low=5, high=9).masked_fill(~attention_mask, 0)
    counts = draw(images, low=1, high=regions)
    region_mask = torch.arange(int(counts.max())) < counts[:, None]
    sides = {
        "region_boxes": torch.rand(*region_mask.shape, 7, generator=generator),
        "region_mask": region_mask,
        "region_labels": draw(*region_mask.shape, high=len(THINGS) - 1),
    }
    if feature_size:
        del sides["region_labels"]
        sides["region_features"] = torch.randn(*region_mask.shape, feature_size, generator=generator)
    return {"input_ids": ids, "attention_mask": attention_mask}, sides


@pytest.fixture(scope="module", params=[0, 4], ids=["labels", "features"])
def feature_size(request):
    return request.param


@pytest.fixture(scope="module")
def model(feature_size):
    torch.manual_seed(0)
    return tiny_model(feature_size, initializer_range=0.5).double().eval()


def rows_of(side, rows):
    return {key: value[rows] for key, value in side.items()}


class TestScores:
    @given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
    def test_every_pair_is_what_forward_gives(self, model, feature_size, texts, images, seed):
        text, region = random_sides(texts, images, seed, feature_size=feature_size)
        region |= {key: value.double() for key, value in region.items() if value.is_floating_point()}
        rows, columns = torch.arange(texts).repeat_interleave(images), torch.arange(images).repeat(texts)
        expected = model(**rows_of(text, rows), **rows_of(region, columns)).scores.view(texts, images)
        torch.testing.assert_close(model.score_pairs(text, region), expected, **TOLERANCE)
        assert expected.numel() == 1 or expected.std() > 1e-3
        first = model(**rows_of(text, slice(1)), **region).scores
        torch.testing.assert_close(first, expected[0], **TOLERANCE)
        first = model(**text, **rows_of(region, slice(1))).scores
        torch.testing.assert_close(first, expected[:, 0], **TOLERANCE)

    def test_padding_is_not_seen(self, model, feature_size):
        text, region = random_sides(3, 3, feature_size=feature_size)
        region |= {key: value.double() for key, value in region.items() if value.is_floating_point()}
        expected = model(**text, **region).scores
        longer = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in text.items()}
        longer["input_ids"][~longer["attention_mask"]] = 7
        more = {
            key: torch.nn.functional.pad(value, (0, 0, 0, 2) if value.dim() == 3 else (0, 2))
            for key, value in region.items()
        }
        more["region_boxes"][~more["region_mask"]] = 3.0
        torch.testing.assert_close(model(**longer, **more).scores, expected, **TOLERANCE)
        torch.testing.assert_close(model.score_pairs(longer, more).diagonal(), expected, **TOLERANCE)

    def test_order_of_regions_does_not_matter_but_that_of_words_does(self, model, feature_size):
        text, region = random_sides(1, 1, seed=1, feature_size=feature_size)
        region |= {key: value.double() for key, value in region.items() if value.is_floating_point()}
        score = model(**text, **region).scores
        torch.testing.assert_close(model(**text, **{k: v.flip(1) for k, v in region.items()}).scores, score)
        text["input_ids"] = torch.tensor([[2, 5, 6, 3]])
        text["attention_mask"] = torch.ones(1, 4, dtype=torch.bool)
        swapped = text | {"input_ids": torch.tensor([[2, 6, 5, 3]])}
        assert (model(**text, **region).scores - model(**swapped, **region).scores).abs() > 1e-4

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_attention_implementations(self, implementation, autocast):
        torch.manual_seed(0)
        model = tiny_model(initializer_range=0.2).eval()
        text, region = random_sides(3, 4)
        expected = model.double().score_pairs(text, {**region, "region_boxes": region["region_boxes"].double()})
        model.float().set_attn_implementation(implementation)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pairs = model.score_pairs(text, region).double()
            row = model(**rows_of(text, slice(1)), **region).scores.double()
        tolerance = 0.05 if autocast else 1e-5
        torch.testing.assert_close(pairs, expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(row, expected[0], rtol=0, atol=tolerance)

    def test_scores_in_bfloat16_do_not_tie(self):
        torch.manual_seed(0)
        model = tiny_model(initializer_range=0.2).eval()
        with torch.no_grad():
            model.rank_output.bias.fill_(8.0)  # where bfloat16 has steps of 1/16
        text, region = random_sides(16, 16)
        with torch.autocast("cpu", torch.bfloat16):
            pairs, paired = model.score_pairs(text, region), model(**text, **region).scores
        assert pairs.dtype == paired.dtype == torch.float32
        assert len(pairs.unique()) > 200 and len(paired.unique()) == 16

    def test_rows_of_a_shared_side_have_dropout_of_their_own(self):
        torch.manual_seed(0)
        model = tiny_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0).train()
        seen = []
        hook = model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        text, region = random_sides(1, 1)
        for many in (rows_of(text, [0, 0]) | region, text | rows_of(region, [0, 0])):
            model(**many)
        hook.remove()
        for hidden in seen:
            split = text["input_ids"].size(1)
            assert not torch.equal(hidden[0, :split], hidden[1, :split])
            assert not torch.equal(hidden[0, split:], hidden[1, split:])

    def test_gradient_checkpointing(self):
        text, region = random_sides(3, 3)
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            model = tiny_model(initializer_range=0.2).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(1)
            model(**text, **region).scores.sum().backward()
            gradients.append(model.img_embeddings.label_embeddings.weight.grad)
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(gradients[1], gradients[0])

    def test_the_other_kind_of_region_is_refused(self, model, feature_size):
        text, region = random_sides(1, 1, feature_size=0 if feature_size else 3)
        with pytest.raises(ValueError, match="region_features" if feature_size else "region_labels"):
            model(**text, **region)


def test_positions():
    attention_mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    region_mask = torch.tensor([[True, True, False]])
    text, region = RegionRetriever.positions(attention_mask, region_mask)
    assert text.int().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert region.int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 0]] * 2


def test_new_weights_are_drawn_as_the_encoder_was():
    torch.manual_seed(0)
    model = RegionRetriever.from_encoder(tiny_config(hidden_size=64), region_feature_size=64)
    for weight in (model.img_embeddings.img_linear.weight, model.encoder.layer[0].intermediate.dense.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.img_embeddings.img_linear.bias.any()
    assert model.img_embeddings.img_layer_norm.weight.eq(1).all()


@pytest.fixture
def bert_folder(tmp_path):
    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


class TestEncoderFolders:
    def test_weights_are_taken_over(self, bert_folder):
        bert = BertModel.from_pretrained(bert_folder)
        model = RegionRetriever.from_encoder(bert_folder, region_labels=THINGS)
        state = model.state_dict()
        for key, value in bert.state_dict().items():
            assert torch.equal(state[key], value)
        ids = torch.tensor([[2, 5, 6, 3]])
        assert torch.equal(model.eval().embeddings(ids), bert.embeddings(ids))

    def test_first_layers_alone(self, bert_folder):
        bert = BertModel.from_pretrained(bert_folder)
        model = RegionRetriever.from_encoder(bert_folder, region_labels=THINGS, num_hidden_layers=1)
        assert len(model.encoder.layer) == model.config.num_hidden_layers == 1
        (layer,) = model.encoder.layer
        assert torch.equal(layer.attention.self.query.weight, bert.encoder.layer[0].attention.self.query.weight)
        for layers in (0, 3):
            with pytest.raises(OptionError, match=f"has 2 layers, asked for {layers}"):
                RegionRetriever.from_encoder(bert_folder, region_labels=THINGS, num_hidden_layers=layers)

    def test_class_vectors_start_from_names(self):
        torch.manual_seed(0)
        model = RegionRetriever.from_encoder(tiny_config(), region_labels=["dog", "dog and cat", ""])
        before = model.img_embeddings.label_embeddings.weight.clone()
        tokenizer = tiny_tokenizer()
        model.init_labels(tokenizer)
        words = model.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(["dog", "and", "cat"])]
        after = model.img_embeddings.label_embeddings.weight
        torch.testing.assert_close(after[0], words[0])
        torch.testing.assert_close(after[1], words.mean(0))
        assert torch.equal(after[2], before[2])
        with pytest.raises(OptionError, match="reads region features"):
            tiny_model(3).init_labels(tokenizer)

    @pytest.mark.parametrize("options", [{}, {"region_feature_size": 2, "region_labels": ["a"]}, {"region_labels": []}])
    def test_regions_are_described_in_one_way(self, options):
        with pytest.raises(OptionError, match="either a feature vector or a class label"):
            RegionRetriever.from_encoder(tiny_config(), **options)

    def test_one_token_type_is_refused(self):
        with pytest.raises(OptionError, match="need 2 token types"):
            tiny_model(type_vocab_size=1)

    def test_saved_and_loaded(self, tmp_path, model, feature_size):
        model.save_pretrained(tmp_path / "model")
        loaded = RegionRetriever.from_pretrained(tmp_path / "model")
        assert type(loaded.config) is RegionRetrieverConfig and not loaded.training
        assert loaded.config.region_labels == (None if feature_size else list(THINGS))
        assert loaded.config.region_feature_size == feature_size
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)

    def test_a_missing_weight_is_not_drawn_anew(self, tmp_path, model):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["rank_output.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"not a trained model: its weights lack rank_output.weight$"):
            RegionRetriever.from_pretrained(tmp_path)

    @pytest.mark.parametrize("load", [RegionRetriever.from_pretrained, RegionRetriever.from_encoder])
    def test_a_folder_that_is_no_model(self, tmp_path, bert_folder, load):
        def refused(match, folder=bert_folder):
            with pytest.raises(InputError, match=match) as error:
                if load == RegionRetriever.from_encoder:
                    load(folder, region_feature_size=3)
                else:
                    load(folder)
            assert str(folder) in str(error.value) and "\n" not in str(error.value)

        refused("is not a folder; a model is", tmp_path / "nowhere")
        (bert_folder / "config.json").write_text("[]")
        refused("no model_type in it")
        (bert_folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        refused("model_type is 'gpt2', it must be")
        kind = "bert" if load == RegionRetriever.from_encoder else "region_retriever"
        config = tiny_config().to_dict() | {"model_type": kind, "region_feature_size": 3}
        (bert_folder / "config.json").write_text(json.dumps(config))
        weights = bert_folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        refused("cannot be loaded")
        weights.rename(bert_folder / "pytorch_model.bin")
        refused("pytorch_model.bin could run code when loaded")


class TestUniter:
    @pytest.fixture
    def golden(self):
        return tensors(ITM[0])

    def test_ranking_head_comes_from_the_matching_head(self, golden):
        model = golden_model(golden)
        weights = weights_of(golden)
        pretrained = {key: value for key, value in weights.items() if not key.startswith("rank_output")}
        model.load_uniter(pretrained)
        assert torch.equal(model.rank_output.weight, weights["itm_output.weight"][1:])
        assert torch.equal(model.rank_output.bias, weights["itm_output.bias"][1:])
        model.rank_output.weight.data.zero_()
        assert weights["itm_output.weight"].any()  # a copy, not a view

    def test_what_is_missing_is_named(self, golden):
        model = golden_model(golden)
        weights = weights_of(golden)
        with pytest.raises(CheckpointError, match=r"lacks encoder.layer.0.output.LayerNorm.weight; it has itm_output"):
            model.load_uniter({k: v for k, v in weights.items() if "layer.0.output.LayerNorm.weight" not in k})
        with pytest.raises(
            CheckpointError, match=r"lacks embeddings.word_embeddings.weight, .* and \d+ more; it has a$"
        ):
            model.load_uniter({"a": torch.zeros(1)})
        before = {key: value.clone() for key, value in model.state_dict().items()}
        wrong = weights | {"uniter.pooler.dense.bias": torch.zeros(3)}
        with pytest.raises(CheckpointError, match=r"pooler.dense.bias \(3,\) instead of \(16,\)$"):
            model.load_uniter(wrong)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
    @pytest.mark.parametrize("encoder", ["uniter.", "bert.", ""])
    def test_prefixes_and_names_of_tensorflow(self, golden, prefix, encoder):
        model = golden_model(golden)
        wanted = {key: value.clone() for key, value in model.state_dict().items()}
        weights = {}
        for key, value in weights_of(golden).items():
            name = key.replace("uniter.", encoder)
            if "LayerNorm" in key or "layer_norm" in key:
                name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            weights[prefix + name] = value
        for value in model.parameters():
            value.data.zero_()
        model.load_uniter(weights)
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())

    def test_class_vectors_stay(self, golden):
        source = golden_model(golden)
        model = RegionRetriever.from_encoder(source.config, region_labels=THINGS).double()
        before = model.img_embeddings.label_embeddings.weight.clone()
        model.load_uniter(weights_of(golden))
        assert torch.equal(model.img_embeddings.label_embeddings.weight, before)
        assert torch.equal(model.pooler.dense.weight, source.pooler.dense.weight)

    def test_a_file_goes_through_the_safe_loader(self, golden, tmp_path):
        torch.save(weights_of(golden), tmp_path / "uniter.pt")
        model = golden_model(golden)
        model.load_uniter(load_safely(tmp_path / "uniter.pt"))
