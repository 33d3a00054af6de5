"""Several processes that each read a share of one data set, or that resume one checkpoint together."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from fairseq_ext.compat.resuming import each_file_read
from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError, first_line

__all__ = ["read_whole_shares", "refuse_in_all_processes", "resume_with_other_processes", "scores_of_shares"]

REFUSED = "refused"
"""What the first process sends in place of a checkpoint."""


def read_whole_shares() -> bool:
    """Let a command that reads a data set with a trained model get the batches of the data set, and no empty ones.

    fairseq fills up the shares of processes with empty batches. A training needs them, but ``fairseq-validate`` takes
    them for samples, and a process that gets only empty batches reports figures that are of no sentence.
    """
    from fairseq import checkpoint_utils

    @wrapping(checkpoint_utils, "load_model_ensemble_and_task")
    def load_model_ensemble_and_task(upstream: Any, *args: Any, **kwargs: Any) -> Any:
        models, cfg, task = upstream(*args, **kwargs)
        if task is not None and "get_batch_iterator" not in vars(task):
            task.get_batch_iterator = _reading(task, task.get_batch_iterator)
        return models, cfg, task

    return True


def _reading(task: Any, upstream: Any) -> Any:
    from fairseq.data.iterators import EpochBatchIterator

    @functools.wraps(upstream)
    def get_batch_iterator(dataset: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = upstream(dataset, *args, **kwargs)
        own = dataset, getattr(dataset, "dataset", None)  # --context-window wraps it
        subset = next((name for name, loaded in task.datasets.items() if any(loaded is each for each in own)), None)
        if subset is None or type(iterator) is not EpochBatchIterator:  # such as the sentences of a user
            return iterator
        batches, processes = len(iterator.frozen_batches), iterator.num_shards
        if not batches:
            raise DataError(
                f"{subset}: none of its {len(dataset)} sentences is read; those above the positions of the model are "
                "left out"
            )
        if processes > batches:
            raise OptionError(
                f"--distributed-world-size: {processes} processes cannot share the {batches} batches of {subset}: "
                "start at most as many, or give a smaller --batch-size"
            )
        ordered = iterator.ordered_batches
        iterator.ordered_batches = lambda *order: [batch for batch in ordered(*order) if len(batch)]
        return iterator

    return get_batch_iterator


@contextlib.contextmanager
def scores_of_shares(cfg: Any) -> Iterator[None]:
    """A context in which each of several processes says that its score is that of its share of the sentences."""
    from fairseq import scoring

    processes, rank = cfg.distributed_training.distributed_world_size, cfg.distributed_training.distributed_rank
    build = scoring.build_scorer

    @functools.wraps(build)
    def build_scorer(*args: Any, **kwargs: Any) -> Any:
        scorer = build(*args, **kwargs)
        score = scorer.result_string
        scorer.result_string = lambda *order: f"share {rank + 1} of {processes}, not the set: {score(*order)}"
        return scorer

    if processes > 1:
        scoring.build_scorer = build_scorer
    try:
        yield
    finally:
        scoring.build_scorer = build


def refuse_in_all_processes() -> bool:
    """Let the others end in the same line as the first process, if it refuses the checkpoint that all resume.

    Only the first process reads the file; without this the others wait for its content until the connection breaks.
    """
    from fairseq import checkpoint_utils
    from fairseq.distributed import utils
    from fairseq.trainer import Trainer

    @wrapping(Trainer, "load_checkpoint")
    def load_checkpoint(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.data_parallel_world_size == 1:
            return upstream(self, *args, **kwargs)
        read, broadcast = checkpoint_utils.load_checkpoint_to_cpu, utils.broadcast_object

        def read_or_tell(path: str, *args: Any, load_on_all_ranks: bool = False, **kwargs: Any) -> Any:
            try:
                return read(path, *args, load_on_all_ranks=load_on_all_ranks, **kwargs)
            except Exception as error:
                if not load_on_all_ranks:
                    group, device = self.data_parallel_process_group, self.device
                    broadcast({REFUSED: first_line(error)}, src_rank=0, group=group, dist_device=device)
                raise

        def broadcast_object(*args: Any, **kwargs: Any) -> Any:
            received = broadcast(*args, **kwargs)
            if isinstance(received, dict) and REFUSED in received:
                raise CheckpointError(received[REFUSED])
            return received

        checkpoint_utils.load_checkpoint_to_cpu, utils.broadcast_object = read_or_tell, broadcast_object
        try:
            return upstream(self, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu, utils.broadcast_object = read, broadcast

    return True


def resume_with_other_processes() -> bool:
    """Let a training that is resumed within an epoch go on after the batches that its processes have seen together.

    fairseq keeps how many batches each process has seen; with more or fewer processes this is another place in the
    epoch.
    """
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.trainer import Trainer

    def count(path: str, state: dict[str, Any]) -> None:
        cfg, iterator = state.get("cfg") or {}, state.get("extra_state", {}).get("train_iterator")
        processes = (cfg.get("distributed_training") or {}).get("distributed_world_size")
        if processes and iterator is not None:
            iterator["processes"] = processes // ((cfg.get("common") or {}).get("model_parallel_size") or 1)

    @wrapping(Trainer, "load_checkpoint")
    def load_checkpoint(upstream: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        with each_file_read(count):
            return upstream(self, *args, **kwargs)

    @wrapping(EpochBatchIterator, "load_state_dict")
    def load_state_dict(upstream: Any, self: Any, state: dict[str, Any]) -> None:
        seen, now = state.get("iterations_in_epoch", 0), self.num_shards
        before = state.get("processes", now)
        if seen and before != now:
            batches, epoch = seen * before, state["epoch"]
            one_order = type(self) is EpochBatchIterator and not self.grouped_shuffling
            if not one_order or batches % now:
                why = f"of which {now} have no equal share" if one_order else "which stand in another order then"
                raise OptionError(
                    f"--distributed-world-size: {now} processes here; the {before} of the checkpoint have seen "
                    f"{batches} batches of epoch {epoch}, {why}: resume with {before} (and their --update-freq), or "
                    "from the end of an epoch (--restore-file)"
                )
            state = {**state, "iterations_in_epoch": batches // now, "processes": now}
        upstream(self, state)

    return True
