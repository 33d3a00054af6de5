"""Batches of images and captions, and what the task refuses."""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import options, tasks
from fairseq.data.data_utils import numpy_seed
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import DictConfig, OmegaConf

import fairseq_ext
from fairseq_ext.captions.checksums import write_checksums
from fairseq_ext.captions.scores import bleu, cider_d
from fairseq_ext.captions.store import KINDS
from fairseq_ext.captions.tokenizer import tokenize
from fairseq_ext.tasks.caption_options import SEARCH
from fairseq_ext.tasks.caption_scores import SCORES, ReferenceScores
from fairseq_ext.tasks.caption_state import compare_states
from fairseq_ext.tasks.captioning import CaptioningTask, Pieces
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from tests.captions.images import SIZE, prepared
from tests.helpers import ROOT


@pytest.fixture(scope="module", params=KINDS)
def data(request, tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("regions"), "regions")


@functools.cache
def training() -> DictConfig:
    """The configuration of a training."""
    fairseq_ext.register()
    words = ["DATA", "--user-dir", str(ROOT / "fairseq_ext"), "--task", "captioning", "--arch", "transformer_ext"]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))


def task_of(data: Path, **given) -> CaptioningTask:
    cfg = copy.deepcopy(training().task)
    for name, value in {"data": str(data), **given}.items():
        cfg[name] = value
    return tasks.setup_task(cfg)


def dataset_of(task: CaptioningTask, split: str):
    task.load_dataset(split)
    return task.datasets[split]


def test_training_has_every_caption_and_validation_every_image(data):
    task = task_of(data)
    train, valid = dataset_of(task, "train"), dataset_of(task, "valid")
    assert len(train) == 2 * len(train.split) and len(valid) == len(valid.split)
    spelled = [task.text(train[index]["target"]) for index in range(len(train))]
    assert spelled == [tokenize(caption) for captions in train.split.references for caption in captions]
    assert [task.text(valid[index]["target"]) for index in range(len(valid))] == [
        tokenize(captions[0]) for captions in valid.split.references
    ]
    assert [valid[index]["id"] for index in range(len(valid))] == list(range(len(valid)))


def test_a_batch_holds_its_images_and_padding(data):
    task = task_of(data)
    dataset = dataset_of(task, "train")
    samples = [dataset[index] for index in (0, 5, 8, 11)]
    batch = dataset.collater(samples)
    read = batch["net_input"]
    kind, pad = task.preparation.kind, task.dictionary.pad()
    assert read.keys() == {"src_tokens", "src_lengths", "geometry", "prev_output_tokens"} | (
        {"features"} if kind != "classes" else set()
    )
    for row, sample in enumerate(samples):
        rows = dataset.split.rows(dataset.images[sample["id"]])
        count = rows.stop - rows.start
        assert read["src_lengths"][row] == count
        tokens = read["src_tokens"][row]
        assert tokens[count:].eq(pad).all() and not tokens[:count].eq(pad).any()
        if kind == "classes":
            assert (tokens[:count] - 4).tolist() == dataset.split.labels[rows].tolist()
        else:
            assert tokens[:count].eq(task.dictionary.unk()).all()
            assert read["features"].dtype == torch.float32 and read["features"].shape[2] == SIZE
            assert np.array_equal(read["features"][row, :count], dataset.split.features[rows].astype(np.float32))
            assert not read["features"][row, count:].any()
        assert read["geometry"].dtype == torch.float32 and not read["geometry"][row, count:].any()
        x1, y1, x2, y2 = (dataset.split.boxes[rows] / [120, 80, 120, 80]).T
        expected = np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], axis=1)
        np.testing.assert_allclose(read["geometry"][row, :count], expected, atol=1e-6)
        target = sample["target"]
        assert torch.equal(batch["target"][row, : len(target)], target)
        assert torch.equal(read["prev_output_tokens"][row, 1 : len(target)], target[:-1])
        assert read["prev_output_tokens"][row, 0] == target[-1] == task.dictionary.eos()
    assert batch["ntokens"] == sum(len(sample["target"]) for sample in samples) and batch["nsentences"] == 4
    assert dataset.collater([]) == {}


def test_classes_beside_vectors_are_labels(regions, tmp_path):
    data = shutil.copytree(regions, tmp_path / "data")
    preparation = json.loads((data / "captioning.json").read_text())
    (data / "captioning.json").write_text(json.dumps(preparation | {"num_classes": 3}))
    (data / "categories.txt").write_text("a\nb\nc\n")
    arrays = dict(np.load(data / "train.images.npz"))
    arrays["labels"] = np.arange(len(arrays["boxes"])) % 3
    np.savez(data / "train.images.npz", **arrays)
    write_checksums(data)
    task = task_of(data)
    dataset = dataset_of(task, "train")
    read = dataset.collater([dataset[index] for index in (0, 6)])["net_input"]
    for row, index in enumerate((0, 6)):
        labels = arrays["labels"][dataset.split.rows(dataset.images[index])]
        assert read["labels"][row, : len(labels)].tolist() == labels.tolist()
    assert read["src_tokens"].max() == task.dictionary.unk()


def test_training_batches_are_alike_and_drawn_by_the_seed(regions):
    dataset = dataset_of(task_of(regions), "train")

    def order(seed: int) -> list[int]:
        with numpy_seed(seed):
            return dataset.ordered_indices().tolist()

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(len(dataset)))
    sizes = [tuple(dataset.sizes[index]) for index in order(1)]
    assert sizes == sorted(sizes) and all(dataset.size(index) == tuple(dataset.sizes[index]) for index in order(1))
    assert dataset.num_tokens_vec(np.arange(4)).tolist() == [dataset.num_tokens(index) for index in range(4)]
    valid = dataset_of(task_of(regions), "valid")
    assert [valid.size(index)[0] for index in valid.ordered_indices()] == sorted(valid.num_regions)


def test_long_captions_are_cut_and_counted(regions, caplog):
    caplog.set_level("INFO")
    dataset = dataset_of(task_of(regions, max_target_positions=4), "train")
    lengths = dataset.captions.sizes
    assert max(len(dataset[index]["target"]) for index in range(len(dataset))) == 4
    assert all(dataset[index]["target"][-1] == 2 for index in range(len(dataset)))
    assert dataset.num_cut == (lengths > 4).sum() > 0
    assert f"{dataset.num_cut} captions cut to 4 tokens" in caplog.text
    kept, ignored = dataset.filter_indices_by_size(np.arange(len(dataset)), (1024, 4))
    assert len(kept) == len(dataset) and not ignored


def test_a_worker_is_not_sent_the_features(regions):
    dataset = dataset_of(task_of(regions), "train")
    assert dataset.split.features is not None
    sent = pickle.dumps(dataset)
    assert dataset.split.features.tobytes() not in sent
    again = pickle.loads(sent)
    assert torch.equal(again[3]["features"], dataset[3]["features"]) and torch.equal(
        again[3]["target"], dataset[3]["target"]
    )


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_image_is_in_a_batch(regions, batch_size, shards):
    task = task_of(regions)
    dataset = dataset_of(task, "test")
    iterators = [
        task.get_batch_iterator(
            dataset,
            max_sentences=batch_size,
            required_batch_size_multiple=8,
            num_shards=shards,
            shard_id=shard,
            disable_iterator_cache=True,
        )
        for shard in range(shards)
    ]
    batches = itertools.chain(*(iterator.next_epoch_itr(shuffle=False) for iterator in iterators))
    assert sorted(int(number) for batch in batches if batch for number in batch["id"]) == list(range(len(dataset)))


def test_a_lost_image_is_not_passed_over(regions, monkeypatch):
    task = task_of(regions)
    dataset = dataset_of(task, "test")
    monkeypatch.setattr(type(dataset), "batch_by_size", lambda self, indices, **kwargs: [indices[:-1]])
    with pytest.raises(DataError, match=r"test: only 3 of 4 images are in a batch"):
        task.get_batch_iterator(dataset, max_sentences=4)


def test_a_sum_over_batches_is_the_score_of_the_set():
    references = [["A dog runs.", "the dog is running fast"], ["Two cats sleep on a bed."], ["A cat and a dog eat."]]
    hypotheses = ["a dog runs on a bed", "two cats sleep", "a cat and a dog eat ."]
    scores = ReferenceScores(references)
    parts = [scores.sums(images, [hypotheses[image] for image in images]) for images in ([2], [0, 1])]
    total = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    tokenized = [[tokenize(caption) for caption in captions] for captions in references]
    texts = [tokenize(hypothesis) for hypothesis in hypotheses]
    assert SCORES["cider"](total) == pytest.approx(100 * cider_d(texts, tokenized).mean())
    assert SCORES["bleu4"](total) == pytest.approx(100 * bleu(texts, tokenized)[3])
    assert all(type(value) is float for value in total.values())


def test_pieces_become_words():
    assert Pieces().decode("▁a ▁do g") == Pieces().decode("a dog") == "a dog"


def test_another_way_to_join_pieces_is_refused(regions):
    assert task_of(regions).build_bpe(None) is None
    with pytest.raises(OptionError, match="--bpe gpt2: not for captions"):
        task_of(regions).build_bpe(OmegaConf.create({"_name": "gpt2"}))


def scored(**given):
    return {"eval_captions": True, **given}


def searched(text: str):
    return scored(eval_captions_args=text)


REFUSED = [
    ({"max_source_positions": 2}, "--max-source-positions 2: .* has images of 3 regions"),
    ({"max_target_positions": 1}, "--max-target-positions must be at least 2, got 1"),
    ({"dataset_impl": "raw"}, "--dataset-impl raw: captions are mapped"),
    ({"required_seq_len_multiple": 8}, "--required-seq-len-multiple 8: has no effect on captions"),
    ({"eval_captions_args": '{"beam":1}'}, "--eval-captions-args .*: has no effect without --eval-captions"),
    ({"eval_captions_print_samples": True}, "--eval-captions-print-samples: has no effect without --eval-captions"),
    ({"post_process": "sentencepiece"}, "--post-process sentencepiece: the captions are of words"),
    (scored(max_valid_steps=1), "--eval-captions: scores are of all images, --max-valid-steps 1 of some"),
    (scored(disable_validation=True), "--eval-captions: has no effect with --disable-validation"),
    (scored(valid_subset="valid,train"), "--valid-subset valid,train: .*trained on .train.*; leave that set out"),
    ({"best_checkpoint_metric": "cider"}, "--best-checkpoint-metric cider: needs --eval-captions"),
    (scored(best_checkpoint_metric="bleu4"), "--best-checkpoint-metric bleu4: needs --maximize-best-checkpoint-metric"),
    (searched("[3]"), '--eval-captions-args .*: must be a mapping like {"beam": 3}'),
    (searched("{"), "--eval-captions-args {: Expecting property name"),
    (searched('{"beams": 3}'), "'beams' is not one of .*; did you mean 'beam'"),
    (searched('{"beam": "x"}'), "--eval-captions-args .*: Value 'x' .* could not be converted"),
    (searched('{"beam": 0}'), "beam and min_len must be at least 1"),
    (searched('{"min_len": 30}'), "and max_len_b at least min_len"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_options_that_are_refused(regions, given, message):
    with pytest.raises(OptionError, match=message):
        task_of(regions, **given)


class Model(torch.nn.Module):
    """Has room for 16 tokens."""

    def max_decoder_positions(self) -> int:
        return 16


REFUSED_SEARCH = {
    "max_len_b=16": "--max-len-b 16: the model writes at most 15 tokens",
    "print_alignment=hard": "--print-alignment: not for captions, .*captions generate --json",
    "constraints=ordered": "--constraints: not for captions",
    "beam=0": "--beam 0 and --min-len 1 must be at least 1",
    "min_len=30": "--min-len 30 must be at least 1, and --max-len-b 20 at least --min-len",
    "max_len_a=1": "--max-len-a: not for captions",
    "print_step=true": "--print-step: not for captions",
    "match_source_len=true": "--match-source-len: not for captions",
    "replace_unk='@@ '": "--replace-unk: not for captions",
    "sampling_topk=3": "--sampling-topk requires --sampling",
}


@pytest.mark.parametrize("given", REFUSED_SEARCH)
def test_searches_that_are_refused(regions, given):
    task = task_of(regions)
    with pytest.raises(OptionError, match=REFUSED_SEARCH[given]):
        task.build_generator([Model()], OmegaConf.merge(task.search, OmegaConf.from_dotlist([given])))


def test_every_option_of_the_search_is_one_of_fairseq(regions):
    assert set(SEARCH) <= set(task_of(regions).search)


def test_a_score_of_one_reference_is_warned_of(regions, caplog, monkeypatch):
    task = task_of(regions)
    monkeypatch.setattr("fairseq.sequence_generator.SequenceGenerator", lambda *args, **kwargs: None)
    for name in ("captions", "bleu"):
        root = OmegaConf.create({"scoring": {"_name": name}, "generation": {"max_len_b": 12}})
        task.build_generator([Model()], root.generation)
        assert ("--scoring bleu: has one reference" in caplog.text) == (name == "bleu")


@pytest.mark.parametrize("arch", ["transformer", "transformer_ext", "transformer_lm_ext", "lstm"])
def test_a_model_of_text_is_refused(regions, arch):
    with pytest.raises(OptionError, match=f"--arch {arch}: reads text; .*--arch captioning_transformer_ext"):
        task_of(regions).build_model(SimpleNamespace(_name=arch))


def test_programs_for_text_are_refused(regions):
    task = task_of(regions)
    with pytest.raises(OptionError, match="fairseq-interactive reads text; `fairseq-ext captions generate"):
        task.get_interactive_tokens_and_lengths(["a"], str)
    with pytest.raises(OptionError, match="fairseq-eval-lm reads text"):
        task.eval_lm_dataloader(None)


@pytest.mark.parametrize("name", ["translation", "language_modeling", "denoising"])
def test_a_task_of_text_is_refused_beside_images(regions, name):
    with pytest.raises(OptionError, match=f"--task {name}: reads no images, and .*; use --task captioning"):
        tasks.setup_task(argparse.Namespace(task=name, data=str(regions)))


def test_a_folder_of_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: no captioning.json in it; `fairseq-ext captions prepare`"):
        task_of(tmp_path)


def test_a_split_that_is_not_there_is_named(regions):
    with pytest.raises(OptionError, match=r"split: 'vaild' is not one of train, valid, test; did you mean 'valid'"):
        task_of(regions).load_dataset("vaild")


HARM = {
    "missing": lambda path, other: path.unlink(),
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-2]),
    "of another preparation": lambda path, other: shutil.copy(other / path.name, path),
    "of another split": lambda path, other: shutil.copy(path.with_name(path.name.replace("valid", "test", 1)), path),
}


@pytest.mark.parametrize("harm", HARM)
def test_every_file_is_what_was_prepared_or_is_named(regions, tmp_path, capfd, harm):
    other = prepared(tmp_path / "other", "regions", images=1)
    for file in sorted(regions.iterdir()):
        split = file.name.split(".")[0]
        if harm == "of another split" and split != "valid":
            continue
        copied = shutil.copytree(regions, tmp_path / "data", dirs_exist_ok=True)
        HARM[harm](copied / file.name, other)
        with pytest.raises(DataError) as error:
            task_of(copied).load_dataset(split)
        assert file.name in str(error.value) and "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_batch_below_an_image_is_refused(regions):
    task = task_of(regions)
    with pytest.raises(OptionError, match=r"--max-tokens 3: an image of train has \d+ regions or tokens"):
        task.get_batch_iterator(dataset_of(task, "train"), max_tokens=3)


def differently(name: str, saved: dict) -> dict:
    """A checkpoint's state that differs from the folder in ``name``."""
    if name == "words":
        return saved | {"words": [*saved["words"][:-1], "zebra"]}
    if name == "fewer words":
        return saved | {"words": saved["words"][:-1]}
    if name == "categories":
        return saved | {"categories": ["dog"]}
    value = {"kind": "grid", "grid": (7, 7), "tokenizer": "sentencepiece"}.get(name, 99)
    return saved | {"preparation": saved["preparation"] | {name: value}}


@pytest.mark.parametrize(
    "name", ["kind", "feature_dim", "grid", "num_classes", "tokenizer", "words", "fewer words", "categories"]
)
def test_a_checkpoint_of_other_data_is_refused(regions, tmp_path, name):
    task = task_of(regions)
    saved = task.state_dict()
    task.load_state_dict(saved)
    for loaded in (saved, differently(name, saved)):
        torch.save({"task_state": loaded}, tmp_path / "checkpoint.pt")
        if loaded is saved:
            task.check_checkpoint(str(tmp_path / "checkpoint.pt"), True)
    message = f"{regions}: {name.removeprefix('fewer ')} .*, but {{}} was trained on "
    with pytest.raises(CheckpointError, match=message.format("the checkpoint")):
        task.load_state_dict(differently(name, saved))
    with pytest.raises(CheckpointError, match=message.format(tmp_path / "checkpoint.pt")):
        task.check_checkpoint(str(tmp_path / "checkpoint.pt"), False)


def test_a_training_resumes_with_its_own_images_alone(regions, tmp_path):
    """Another training may start from its weights on images with the same words."""
    task, other = task_of(regions), task_of(prepared(tmp_path / "again", "regions"))
    path, saved = tmp_path / "checkpoint.pt", task.state_dict()
    assert other.state_dict()["images"] == saved["images"], "prepared again they are the same"
    for split, count in saved["images"].items():
        torch.save({"task_state": saved | {"images": saved["images"] | {split: count[::-1]}}}, path)
        task.check_checkpoint(str(path), False)
        if split != "test":
            with pytest.raises(CheckpointError, match=f"not the images and captions of {split} that {path} was"):
                task.check_checkpoint(str(path), True)


def test_features_of_another_network_are_refused(regions):
    task = task_of(regions)
    saved = task.state_dict()

    def state(extractor):
        return saved | {"preparation": saved["preparation"] | {"extractor": extractor}}

    for own, trained in (("", "a 1"), ("a 1", ""), ("a 1", "b 1")):  # not recorded; a copy of another name
        compare_states(state(own), state(trained), "folder", "x.pt")
    with pytest.raises(DataError, match=r"folder: features of a 1, but x.pt was trained on those of a 2"):
        compare_states(state("a 1"), state("a 2"), "folder", "x.pt")


def test_a_checkpoint_of_another_task_is_refused(regions):
    task = task_of(regions)
    saved = task.state_dict()
    with pytest.raises(
        CheckpointError, match="the checkpoint: not trained with --task captioning: it lacks categories"
    ):
        task.load_state_dict({})
    for name in ("images", "words"):
        with pytest.raises(CheckpointError, match=f"not trained with --task captioning: it lacks {name}"):
            task.load_state_dict({key: value for key, value in saved.items() if key != name})
    parts = {name: value for name, value in saved["preparation"].items() if name != "extractor"}
    with pytest.raises(CheckpointError, match=r"it lacks extractor$"):
        task.load_state_dict(saved | {"preparation": parts})
