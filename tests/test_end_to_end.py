"""The commands a user types: train, kill, resume, average, translate; two of them in an interpreter of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fairseq_ext import cli, compat
from tests.fairseq_commands import FairseqCommands
from tests.helpers import ROOT, python_path
from tests.training.boards import scalars

PAIRS = """
guten morgen .|good morning .
guten abend , mein freund .|good evening , my friend .
wie geht es dir ?|how are you ?
mir geht es gut , danke .|i am fine , thank you .
wo ist der bahnhof ?|where is the station ?
der zug kommt um acht uhr .|the train arrives at eight .
der zug ist schon weg .|the train has already left .
ich habe keine zeit .|i have no time .
ich habe einen hund und zwei katzen .|i have a dog and two cats .
der hund schläft unter dem tisch .|the dog is sleeping under the table .
die katze sitzt auf dem dach .|the cat is sitting on the roof .
das haus ist alt , aber schön .|the house is old but beautiful .
wir wohnen in einem kleinen dorf .|we live in a small village .
das dorf liegt am meer .|the village lies by the sea .
im sommer schwimmen wir jeden tag .|in summer we swim every day .
im winter ist es hier sehr kalt .|in winter it is very cold here .
heute regnet es .|it is raining today .
morgen scheint die sonne .|the sun will shine tomorrow .
meine schwester liest ein buch .|my sister is reading a book .
mein bruder spielt gitarre .|my brother plays the guitar .
die kinder spielen im garten .|the children are playing in the garden .
ein mann fährt mit dem fahrrad .|a man is riding a bicycle .
eine frau trägt einen roten hut .|a woman is wearing a red hat .
zwei mädchen laufen über die straße .|two girls are running across the street .
das brot ist frisch .|the bread is fresh .
ich möchte einen kaffee , bitte .|i would like a coffee , please .
was kostet das ?|how much is that ?
das ist mir zu teuer .|that is too expensive for me .
können sie mir helfen ?|can you help me ?
ich verstehe dich nicht .|i do not understand you .
sprechen sie bitte langsam .|please speak slowly .
sie lernt seit einem jahr deutsch .|she has been learning german for a year .
er arbeitet in einer schule .|he works in a school .
die schule beginnt um acht uhr .|school starts at eight .
am abend kochen wir zusammen .|in the evening we cook together .
das essen schmeckt sehr gut .|the food tastes very good .
vergiss den schlüssel nicht !|do not forget the key !
die tür ist offen .|the door is open .
wir sehen uns morgen .|see you tomorrow .
gute nacht und bis bald .|good night and see you soon .
""".strip()

# 5 and 13 sentences: neither is a multiple of 8, the batch size to which fairseq by itself cuts a set down.
SPLITS = {"train": slice(None), "valid": slice(0, 5), "test": slice(10, 23)}
USER_DIR = ROOT / "fairseq_ext"
TINY = [
    *("--encoder-layers", "1", "--decoder-layers", "1", "--encoder-attention-heads", "2"),
    *("--decoder-attention-heads", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "16", "--decoder-ffn-embed-dim", "16", "--dropout", "0.1"),
]
COMBINED = [
    *("--arch", "transformer_ext", "--block", "muse", "--muse-kernels", "3,5", "--attention-topk", "3"),
    *("--norm", "adanorm", "--cross-view", "gca"),
    *("--criterion", "label_smoothed_encouraging_loss", "--label-smoothing", "0.1", "--log-end", "0.75"),
]
SCHEDULE = [
    *("--optimizer", "adam", "--lr", "0.01", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4"),
    *("--batch-size", "4", "--num-workers", "0", "--cpu", "--seed", "3", "--log-format", "json"),
]


def run(module: str, *arguments: object, cwd: Path) -> str:
    """The output of ``python -m module arguments`` on one thread, where equal runs give equal bits."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def make_data_bin(fairseq: FairseqCommands) -> Path:
    """The pairs above, binarised by ``fairseq-preprocess``."""
    folder = fairseq.folder
    pairs = [line.split("|") for line in PAIRS.splitlines()]
    for split, chosen in SPLITS.items():
        for side, language in enumerate(("de", "en")):
            text = "".join(f"{pair[side]}\n" for pair in pairs[chosen])
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    prefixes = [word for split in SPLITS for word in (f"--{split}pref", split)]
    fairseq.must("fairseq_cli.preprocess", "-s", "de", "-t", "en", *prefixes, "--destdir", "data-bin")
    return folder / "data-bin"


def weights(path: Path) -> dict[str, torch.Tensor]:
    compat.apply()
    return torch.load(path, map_location="cpu", weights_only=True)["model"]


def updates(path: Path) -> int:
    compat.apply()
    return torch.load(path, map_location="cpu", weights_only=True)["optimizer_history"][-1]["num_updates"]


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture(scope="module")
def data_bin(tmp_path_factory, fairseq_server):
    return make_data_bin(FairseqCommands(tmp_path_factory.mktemp("corpus"), fairseq_server))


@pytest.fixture
def fairseq(tmp_path, fairseq_server):
    return FairseqCommands(tmp_path, fairseq_server)


def training(data_bin: Path, save_dir: Path, user_dir: object, *more: object) -> list[object]:
    """The combination of every method: 10 updates an epoch, a checkpoint every 3."""
    saving = ("--save-dir", save_dir, "--save-interval-updates", "3", "--no-epoch-checkpoints", "--disable-validation")
    return [data_bin, "--user-dir", user_dir, *COMBINED, *TINY, *SCHEDULE, *saving, *more]


@pytest.fixture(scope="module")
def trained(data_bin, tmp_path_factory):
    """A straight run of 23 updates, started in the repository with a relative ``--user-dir``."""
    save_dir = tmp_path_factory.mktemp("straight")
    more = ("--max-update", "23", "--tensorboard-logdir", save_dir / "tensorboard")
    log = run("fairseq_cli.train", *training(data_bin, save_dir, "fairseq_ext", *more), cwd=ROOT)
    assert '"train_bonus"' in log
    return save_dir


def test_tensorboard_has_the_numbers_of_the_criterion(trained):
    curves = scalars(trained / "tensorboard" / "train")
    assert {"loss", "nll_loss", "bonus", "lr"} <= curves.keys() and all(curves["bonus"].values())


def test_a_killed_run_resumes_to_the_same_bits(trained, data_bin, fairseq, tmp_path):
    command = training(data_bin, tmp_path / "save", USER_DIR)
    # The victim would run on for long: that it is killed in the middle does not depend on the machine's speed.
    (victim,) = fairseq.start([("fairseq_cli.train", *command, "--max-update", "100000")])
    deadline = time.monotonic() + 200
    while not (tmp_path / "save" / "checkpoint_last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victim, signal.SIGKILL)
    (outcome,) = fairseq.finish()
    assert outcome.code == -signal.SIGKILL, outcome.stderr[-6000:]

    last = tmp_path / "save" / "checkpoint_last.pt"
    done = updates(last)
    assert done % 10 and done < 23, f"killed at update {done}, which is not inside the epochs of the straight run"
    log = fairseq.must("fairseq_cli.train", *command, "--max-update", "23").output
    assert re.search(rf"Loaded checkpoint {last} \(epoch \d+ @ {done} updates\)", log)
    assert updates(last) == 23
    assert_same_bits(last, trained / "checkpoint_last.pt")


def test_a_run_resumes_to_the_same_bits_in_later_epochs(trained, data_bin, fairseq, tmp_path):
    """In the second epoch and in the third: fairseq would draw new batches then."""
    folders = [tmp_path / name for name in ("2_12", "3_21")]
    for folder in folders:
        folder.mkdir()
        shutil.copy(trained / f"checkpoint_{folder.name}.pt", folder / "checkpoint_last.pt")
    fairseq.must_together(
        [("fairseq_cli.train", *training(data_bin, folder, USER_DIR, "--max-update", "23")) for folder in folders]
    )
    for folder in folders:
        assert_same_bits(folder / "checkpoint_last.pt", trained / "checkpoint_last.pt")


def test_a_run_in_half_precision_resumes_to_the_same_bits(data_bin, fairseq, tmp_path):
    """Beside it what else is counted from the start: the moving average, and a seed that epochs are added to."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    counted = ("--store-ema", "--ema-fp32", "--ema-update-freq", "5", "--update-ordered-indices-seed")
    more = ("--bf16", *counted, "--max-update", "18")
    fairseq.must("fairseq_cli.train", *training(data_bin, straight, USER_DIR, *more))
    resumed.mkdir()
    shutil.copy(straight / "checkpoint_2_12.pt", resumed / "checkpoint_last.pt")
    fairseq.must("fairseq_cli.train", *training(data_bin, resumed, USER_DIR, *more))
    one, other = (torch.load(folder / "checkpoint_last.pt", weights_only=True) for folder in (straight, resumed))
    for part in (lambda saved: saved["model"], lambda saved: saved["extra_state"]["ema_fp32_params"]):
        assert not [name for name, value in part(one).items() if not torch.equal(value, part(other)[name])]
    masters = [saved["last_optimizer_state"]["fp32_params"] for saved in (one, other)]
    assert all(map(torch.equal, *masters)) and any((master != master.bfloat16()).any() for master in masters[0])


def test_average_ensemble_generate_and_interactive(trained, data_bin, fairseq, tmp_path):
    average = tmp_path / "average.pt"
    cli.main(["average", "--inputs", str(trained), "--last", "3", "--by", "update", "--output", str(average)])
    parts = [weights(trained / f"checkpoint_{name}.pt") for name in ("2_15", "2_18", "3_21")]
    for name, value in weights(average).items():
        torch.testing.assert_close(value, sum(part[name].double() for part in parts).div(3).to(value.dtype))

    common = ("--user-dir", USER_DIR, "--beam", "3", "--cpu")
    ensemble = f"{average}:{trained / 'checkpoint_last.pt'}"
    scored = ("--path", ensemble, "--scoring", "sacrebleu")
    log = fairseq.must("fairseq_cli.generate", data_bin, *common, *scored).output
    assert sorted(map(int, re.findall(r"^H-(\d+)\t", log, re.MULTILINE))) == list(range(13))
    assert "Translated 13 sentences" in log
    assert "BLEU" in log

    sentences = "der zug kommt .\nwo ist die katze ?\nguten morgen .\n"
    options = (*common, "-s", "de", "-t", "en", "--path", average)
    log = fairseq.must("fairseq_cli.interactive", data_bin, *options, stdin=sentences).output
    assert re.findall(r"^S-\d+\t(.*)$", log, re.MULTILINE) == sentences.splitlines()
    assert len(re.findall(r"^D-\d+\t", log, re.MULTILINE)) == 3


def test_from_pretrained_in_a_fresh_process(trained, data_bin, tmp_path):
    script = tmp_path / "translate.py"
    script.write_text(
        "import sys, fairseq_ext\n"
        "fairseq_ext.register()\n"
        "from fairseq_ext.models import TransformerExtModel\n"
        "folder, data = sys.argv[1:]\n"
        "model = TransformerExtModel.from_pretrained(folder, 'checkpoint_last.pt', data_name_or_path=data)\n"
        "print('answer:', repr(model.translate('der zug kommt .', beam=2)))\n"
    )
    log = run("translate", trained, data_bin, cwd=tmp_path)
    assert re.search(r"^answer: '.*'$", log, re.MULTILINE)


def test_hydra_preset_with_eval_bleu_resumes(data_bin, fairseq, tmp_path):
    """BLEU counts are NumPy arrays in the checkpoint, which torch's safe loader refuses without our repair."""
    sizes = [
        f"++model.{side}_{name}" for side in ("encoder", "decoder") for name in ("embed_dim=16", "ffn_embed_dim=16")
    ]
    sizes += [f"++model.{side}_{name}" for side in ("encoder", "decoder") for name in ("layers=1", "attention_heads=2")]
    command = [
        *("--config-dir", USER_DIR / "conf", "--config-name", "muse_iwslt_de_en", f"++common.user_dir={USER_DIR}"),
        *(
            "++common.cpu=true",
            "++common.fp16=false",
            f"++task.data={data_bin}",
            "++task.eval_bleu=true",
            '++task.eval_bleu_args="{\\"beam\\":2}"',
        ),
        *("++model.muse_kernels='3'", *sizes, "++dataset.batch_size=8", "++dataset.num_workers=0"),
        *(
            "++optimization.update_freq=[1]",
            f"++checkpoint.save_dir={tmp_path / 'save'}",
            "++checkpoint.no_epoch_checkpoints=true",
        ),
    ]
    assert "valid_bleu" in fairseq.must("fairseq_cli.hydra_train", *command, "++optimization.max_update=5").output
    last = tmp_path / "save" / "checkpoint_last.pt"
    assert updates(last) == 5
    assert "@ 5 updates" in fairseq.must("fairseq_cli.hydra_train", *command, "++optimization.max_update=8").output
    assert updates(last) == 8


def test_hydra_refuses_in_one_line(data_bin, fairseq):
    """What this suite refuses, and what fairseq does."""
    command = ["--config-dir", USER_DIR / "conf", "--config-name", "muse_iwslt_de_en", f"++common.user_dir={USER_DIR}"]
    wrong = {
        "--norm: 'adanrom' is not one of ": ["common.fp16=false", f"task.data={data_bin}", "++model.norm=adanrom"],
        "data nowhere: No such file": ["common.fp16=false", "task.data=nowhere"],
        "--fp16: trains on a GPU": [f"task.data={data_bin}", "dataset.batch_size=4", "++model.encoder_layers=1"],
    }
    commands = [["fairseq_cli.hydra_train", *command, "common.cpu=true", *words] for words in wrong.values()]
    for line, outcome in zip(wrong, fairseq.run_together(commands), strict=True):
        assert outcome.code == 2 and not outcome.traceback, outcome.stderr[-3000:]
        assert outcome.last_line.startswith(line)


def test_hydra_refuses_a_name_without_a_file(data_bin, fairseq):
    command = ["--config-dir", USER_DIR / "conf", "--config-name", "muse_iwslt_de_em", f"common.user_dir={USER_DIR}"]
    outcome = fairseq.run("fairseq_cli.hydra_train", *command, "common.cpu=true", f"++task.data={data_bin}")
    assert outcome.code == 2 and not outcome.traceback
    assert outcome.last_line.startswith("--config-name: there is no muse_iwslt_de_em.yaml in ")
    assert outcome.last_line.endswith("; did you mean 'muse_iwslt_de_en'?")


def test_two_processes_train_and_resume(data_bin, fairseq, tmp_path):
    def train(max_update: int) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        command = training(data_bin, tmp_path / "save", USER_DIR, "--max-update", max_update)
        command += ["--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo", "--distributed-world-size", "2"]
        command += ["--distributed-no-spawn", "--distributed-init-method", address]
        ranks = [("fairseq_cli.train", *command, "--distributed-rank", rank) for rank in (0, 1)]
        return fairseq.must_together(ranks)[0].output

    last = tmp_path / "save" / "checkpoint_last.pt"
    train(3)
    assert updates(last) == 3
    assert "@ 3 updates" in train(5)
    assert updates(last) == 5
