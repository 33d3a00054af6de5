"""What holds for all repairs: idempotence, the log line, the off switch."""

from __future__ import annotations

import logging

import pytest
from fairseq import checkpoint_utils, options, utils
from fairseq.data import Dictionary, data_utils
from fairseq.file_io import PathManager
from fairseq.search import DiverseBeamSearch
from fairseq.tasks import FairseqTask

from fairseq_ext import compat
from tests.fairseq_commands import FairseqCommands

NAMES = [
    *("safe checkpoints", "whole checkpoints", "overrides", "last batch", "resumed batches", "numpy names"),
    *("cached data", "huffman data", "dictionary flags", "plain encoders", "mbart task", "diverse beams"),
    *("replace unk", "short sentences", "damaged files", "damaged data", "long sentences", "whole shares"),
    *("absent models", "single models", "bfloat16", "hydra refusals", "hydra names", "whole help", "refusals"),
    *(
        "captioned images",
        "refusals of all",
        "resumed place",
        "resumed task",
        "resumed model",
        "resumed patience",
        "resumed precision",
        "resumed average",
        "finished training",
    ),
    "inference dtype",
]


def repaired_places() -> list[object]:
    holders = [data_utils, checkpoint_utils, utils, options, PathManager, FairseqTask, DiverseBeamSearch, Dictionary]
    return [value for holder in holders for value in vars(holder).values()]


def test_applying_again_changes_nothing(caplog):
    assert compat.patched() == NAMES
    before = repaired_places()
    with caplog.at_level(logging.INFO):
        assert compat.apply() == NAMES
    assert all(one is other for one, other in zip(before, repaired_places(), strict=True))
    assert not caplog.records


def test_patched_is_a_copy():
    compat.patched().clear()
    assert compat.patched() == NAMES


SCRIPT = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s", force=True)
from fairseq.data import data_utils
upstream = data_utils.batch_by_size
name, os.environ[name] = sys.argv[1:]
from fairseq_ext import compat
compat.apply()
print("patched", compat.patched(), data_utils.batch_by_size is upstream)
"""


@pytest.mark.parametrize("switch", ["0", "1"])
def test_log_line_and_off_switch(switch, tmp_path, fairseq_server):
    (tmp_path / "repairs.py").write_text(SCRIPT)
    output = FairseqCommands(tmp_path, fairseq_server).must("repairs", compat.OFF_SWITCH, switch).stdout
    lines = [line for line in output.splitlines() if "fairseq_ext.compat" in line]
    if switch == "1":
        assert not lines
        assert "patched [] True" in output
    else:
        assert lines == [
            f"INFO fairseq_ext.compat fairseq repaired: {', '.join(NAMES)} ({compat.OFF_SWITCH}=1 turns this off)"
        ]
        assert f"patched {NAMES} False" in output
