"""fairseq's commands on the tests' device, with a corpus of forty sentences and the combination of every method."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.fairseq_commands import FairseqCommands, FairseqServer, Outcome
from tests.gpu.devices import Device
from tests.test_end_to_end import COMBINED, PAIRS, SPLITS, TINY, USER_DIR

# Without dropout, whose masks differ from device to device, so that losses can be compared.
OPTIONS = [
    *("--user-dir", USER_DIR, *COMBINED, *TINY, "--dropout", "0", "--muse-weight-dropout", "0"),
    *("--optimizer", "adam", "--lr", "0.01", "--batch-size", "4", "--num-workers", "0", "--seed", "3"),
    *("--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints"),
]


class TinyFairseq(FairseqCommands):
    """Binarised pairs in ``data-bin``."""

    def __init__(self, folder: Path, server: FairseqServer, device: Device) -> None:
        super().__init__(folder, server)
        self.device = device
        pairs = [line.split("|") for line in PAIRS.splitlines()]
        for split, chosen in SPLITS.items():
            for side, language in enumerate(("de", "en")):
                text = "".join(f"{pair[side]}\n" for pair in pairs[chosen])
                (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
        prefixes = [word for split in SPLITS for word in (f"--{split}pref", split)]
        self.must("fairseq_cli.preprocess", "-s", "de", "-t", "en", *prefixes, "--destdir", "data-bin")

    def training(self, folder: str, updates: int, *options: object) -> list[object]:
        """The command that trains the combination of every method, on the device unless ``options`` say ``--cpu``."""
        place = [] if "--cpu" in options else self.device.flags
        budget = ("--max-update", updates, "--save-dir", folder)
        return ["fairseq_cli.train", "data-bin", *OPTIONS, *place, *budget, *options]

    def train(self, folder: str, updates: int, *options: object) -> list[dict[str, float]]:
        """Trains; what the log says about each update."""
        return logged(self.must(*self.training(folder, updates, *options)))


def logged(outcome: Outcome) -> list[dict[str, float]]:
    """The numbers of each update."""
    lines = re.findall(r"\btrain_inner\b[^{\n]*(\{.*\})$", outcome.output, re.MULTILINE)
    return [{name: float(value) for name, value in json.loads(line).items()} for line in lines]
