"""Processes that share a data set, whose scores say what they are of, and those that resume one checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fairseq import checkpoint_utils, scoring
from fairseq.data.iterators import EpochBatchIterator
from fairseq.distributed import utils
from fairseq.trainer import Trainer
from torch.utils.data import Dataset

from fairseq_ext.compat.processes import (
    read_whole_shares,
    refuse_in_all_processes,
    resume_with_other_processes,
    scores_of_shares,
)
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError


class Numbers(Dataset):
    """Six sentences, each its number."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index


class Window(Numbers):
    """As ``--context-window`` wraps a data set."""

    def __init__(self, dataset):
        self.dataset = dataset


class Task:
    def __init__(self, data):
        self.datasets = {"test": data}

    def get_batch_iterator(self, dataset, batches, **options):
        return EpochBatchIterator(dataset, list, batches, **options)


@pytest.fixture
def task(monkeypatch):
    """A task that two models were loaded for."""
    task = Task(Numbers())
    monkeypatch.setattr(checkpoint_utils, "load_model_ensemble_and_task", lambda *args: ([], None, task))
    read_whole_shares()
    for _ in range(2):
        checkpoint_utils.load_model_ensemble_and_task([])
    return task


def read(task, data, batches, rank=0, processes=1):
    iterator = task.get_batch_iterator(data, batches, num_shards=processes, shard_id=rank)
    return list(iterator.next_epoch_itr(shuffle=False))


def test_a_share_holds_no_empty_batch(task):
    data, batches = task.datasets["test"], [[0, 1], [2, 3], [4, 5]]
    assert [read(task, data, batches, rank, 2) for rank in range(2)] == [[[0, 1], [4, 5]], [[2, 3]]]
    assert read(task, data, batches) == batches
    assert read(task, Window(data), batches, 1, 2) == [[2, 3]]


def test_nothing_to_read_is_refused(task):
    data = task.datasets["test"]
    for given in (data, Window(data)):
        with pytest.raises(DataError, match=r"^test: none of its 6 sentences is read"):
            read(task, given, [])
        with pytest.raises(OptionError, match=r"^--distributed-world-size: 3 processes.* the 2 batches of test"):
            read(task, given, [[0], [1]], rank=2, processes=3)
    assert read(task, Numbers(), []) == []  # of a program that asks for nothing
    assert read(task, Numbers(), [[0]], rank=1, processes=2) == [[]]


def test_the_score_of_a_share_says_so(monkeypatch):
    upstream = lambda *args: SimpleNamespace(result_string=lambda order=4: f"BLEU{order} = 1.00")  # noqa: E731
    monkeypatch.setattr(scoring, "build_scorer", upstream)
    for processes, said in ((1, ""), (2, "share 2 of 2, not the set: ")):
        cfg = SimpleNamespace(
            distributed_training=SimpleNamespace(distributed_world_size=processes, distributed_rank=processes - 1)
        )
        with scores_of_shares(cfg):
            assert scoring.build_scorer(None, None).result_string() == f"{said}BLEU4 = 1.00"
        assert scoring.build_scorer is upstream


def load_as_fairseq(self, path, everywhere=False):
    """Its ``Trainer.load_checkpoint``: the first process reads, and sends the others what it has read."""
    state = None
    if everywhere or self.data_parallel_rank == 0:
        state = checkpoint_utils.load_checkpoint_to_cpu(path, load_on_all_ranks=everywhere)
    if self.data_parallel_world_size > 1 and not everywhere:
        state = utils.broadcast_object(state, src_rank=0, group=self.data_parallel_process_group, dist_device="cpu")
    return state["extra_state"]


def trainer(rank=0, processes=1):
    place = {"data_parallel_process_group": None, "device": "cpu"}
    return SimpleNamespace(data_parallel_rank=rank, data_parallel_world_size=processes, **place)


def test_what_one_process_refuses_ends_all_in_one_line(monkeypatch):
    def refuse(path, load_on_all_ranks):
        raise OptionError(f"--dropout: other than in {path}")

    line, wire = r"^--dropout: other than in x\.pt$", []
    broadcast = lambda state, **place: wire.append(state) if state else wire[0]  # noqa: E731
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint_to_cpu", refuse)
    monkeypatch.setattr(utils, "broadcast_object", broadcast)
    monkeypatch.setattr(Trainer, "load_checkpoint", load_as_fairseq)
    refuse_in_all_processes()
    with pytest.raises(OptionError, match=line):
        Trainer.load_checkpoint(trainer(0, 2), "x.pt")
    with pytest.raises(CheckpointError, match=line):
        Trainer.load_checkpoint(trainer(1, 2), "x.pt")
    for everywhere, alone in ((True, trainer(1, 2)), (False, trainer())):  # nobody waits
        with pytest.raises(OptionError, match=line):
            Trainer.load_checkpoint(alone, "x.pt", everywhere)
    assert len(wire) == 1
    assert (checkpoint_utils.load_checkpoint_to_cpu, utils.broadcast_object) == (refuse, broadcast)
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint_to_cpu", lambda *args, **kwargs: {"extra_state": 1})
    wire[:] = [{"extra_state": 1}]
    assert Trainer.load_checkpoint(trainer(1, 2), "x.pt") == 1


@pytest.mark.parametrize(
    ("before", "seen", "now", "left"),
    [
        (2, 3, 2, [[6], [7], [8], [9]]),
        (2, 3, 3, [[6], [7], [8], [9]]),
        (1, 4, 2, [[4], [5], [6], [7], [8], [9]]),
        (2, 3, 1, [[6], [7], [8], [9]]),
        (1, 3, 2, "the 1 of the checkpoint have seen 3 batches of epoch 2, of which 2 have no"),
        (
            4,
            2,
            3,
            "the 4 of the checkpoint have seen 8 batches of epoch 2, of which 3 have no equal share: resume with 4",
        ),
        (1, 0, 3, [[number] for number in range(10)]),
        (None, 5, 2, []),  # nobody knows
    ],
)
def test_other_processes_resume_behind_the_batches_that_were_seen(monkeypatch, before, seen, now, left):
    def read(path, load_on_all_ranks):
        place = {"version": 2, "epoch": 2, "iterations_in_epoch": seen, "shuffle": False}
        cfg = {"distributed_training": {"distributed_world_size": before}, "common": {"model_parallel_size": 1}}
        return {"cfg": cfg if before else None, "extra_state": {"train_iterator": place}}

    monkeypatch.setattr(checkpoint_utils, "load_checkpoint_to_cpu", read)
    monkeypatch.setattr(Trainer, "load_checkpoint", load_as_fairseq)
    monkeypatch.setattr(EpochBatchIterator, "load_state_dict", EpochBatchIterator.load_state_dict)
    resume_with_other_processes()
    place = Trainer.load_checkpoint(trainer(), "x.pt")["train_iterator"]

    def rest(rank, **options):
        batches = EpochBatchIterator(
            Numbers(), list, [[n] for n in range(10)], num_shards=now, shard_id=rank, **options
        )
        batches.load_state_dict(dict(place))
        return [batch for batch in batches.next_epoch_itr(shuffle=False) if batch]

    if before and seen and before != now:
        with pytest.raises(
            OptionError, match=f"^--distributed-world-size: {now} processes here; the {before} of .* another order"
        ):
            rest(0, grouped_shuffling=True)
    if isinstance(left, str):
        with pytest.raises(OptionError, match=left):
            rest(0)
    elif before:
        assert sorted(batch for rank in range(now) for batch in rest(rank)) == left
