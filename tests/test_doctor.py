"""``fairseq-ext doctor``: every line is what this machine has, and each fault is named with what to do."""

from __future__ import annotations

import json
import sys
import types
from email.message import Message

import pytest
import torch

import fairseq_ext
from fairseq_ext import cli, compat, doctor, kernels
from fairseq_ext.doctor import fairseq, machine, packages
from fairseq_ext.modules import packed_linear
from fairseq_ext.modules.packed_linear import INFERENCE_DTYPES, processor_note

INSTALLED = {
    "torch": "2.13.0+cpu",
    "numpy": "2.4.6",
    "ve-fairseq": "0.12.3",
    "hydra-core": "1.3.8",
    "scipy": "1.17.1",
    "sacrebleu": "2.6.0",
}
NEEDS = [
    "torch>=2.6",
    "numpy>=1.24",
    "ve-fairseq==0.12.3; platform_system == 'Linux' and extra == 'fairseq'",
    "winreg>=1; platform_system == 'Windows' and extra == 'fairseq'",
    "hydra-core<1.4,>=1.3.2; extra == 'fairseq'",
    "scipy>=1.11; extra == 'graph'",
    "gensim>=4.3; extra == 'graph'",
    "sacrebleu[ja]>=2.3; extra == 'japanese'",
    "fairseq-ext[fairseq,graph]; extra == 'all'",
]


def about(name: str, version: str, needs: list[str]) -> Message:
    message = Message()
    message["Version"], message["Requires-Python"] = version, ">=3.11,<3.13"
    for line in needs:
        message["Requires-Dist"] = line
    for extra in ("fairseq", "graph", "japanese", "all") if name == packages.OURS else ():
        message["Provides-Extra"] = extra
    return message


@pytest.fixture
def installed(monkeypatch):
    """What is installed here: versions by name, which a test may change."""
    versions = {**INSTALLED, packages.OURS: fairseq_ext.__version__}
    needs = {packages.OURS: NEEDS, "sacrebleu": ["portalocker", "ipadic<2.0,>=1.0; extra == 'ja'"]}

    def _about(name):
        return about(name, versions[name], needs.get(name, [])) if name in versions else Message()

    monkeypatch.setattr(packages, "_about", _about)
    monkeypatch.setattr(machine, "CHECKS", {})
    monkeypatch.setattr(fairseq, "CHECKS", {})
    return versions


def test_it_approves_this_installation(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no problem found" and len(lines) <= 50 and max(map(len, lines)) <= 120
    out = " ".join(" ".join(lines).split())
    assert f"repaired {', '.join(compat.patched())}" in out
    assert all(f"{what}: {way_out}" in out for what, way_out in compat.BROKEN.items())
    assert f"torch {torch.__version__}" in out and f"{torch.get_num_threads()} threads" in out

    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["packages"]["(core)"]["torch"] == {"installed": torch.__version__, "supported": ">=2.6"}
    assert report["fairseq"]["repaired"] == compat.patched()
    expected = {dtype: processor_note(dtype) or "at full speed" for dtype in INFERENCE_DTYPES}
    assert report["machine"]["decoding"] == expected


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("hydra-core", "1.4.0rc3", "hydra-core 1.4.0rc3 does not work"),
        ("hydra-core", "1.3.1", "pip install 'hydra-core>=1.3.2,<1.4'"),
        ("torch", "2.5.1+cu121", "pip install 'torch>=2.6'"),
        ("ve-fairseq", "0.12.4", "pip install 've-fairseq==0.12.3'"),
        ("numpy", None, "numpy not installed: pip install 'fairseq-ext'"),
        ("fairseq-ext", "0.0.9", "0.0.9 is installed: pip install it again"),
        ("sacrebleu", "2.2", "pip install 'sacrebleu>=2.3'"),
    ],
)
def test_a_version_that_does_not_work_is_a_problem(installed, capsys, name, version, problem):
    if version is None:
        del installed[name]
    else:
        installed[name] = version
    assert cli.main(["doctor"]) == 1
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("problem: ") and problem in line and last == "1 problem found"


def test_an_extra_has_to_be_complete_where_it_is_named(installed, capsys):
    del installed["ve-fairseq"]
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.startswith("  ")}
    assert lines == {
        "(core)": "torch 2.13.0+cpu, numpy 2.4.6",
        "fairseq": "hydra-core 1.3.8; missing: ve-fairseq",
        "graph": "scipy 1.17.1; missing: gensim",
        "japanese": "sacrebleu 2.6.0; missing: ipadic",
    }
    assert cli.main(["doctor", "graph", "japanese", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == [
        "gensim not installed: pip install 'fairseq-ext[graph]'",
        "ipadic not installed: pip install 'fairseq-ext[japanese]'",
    ]


def test_no_such_extra_is_one_line(installed, capsys):
    with pytest.raises(SystemExit, match=r"EXTRA: 'grahp' is not one of .*did you mean 'graph'") as error:
        cli.main(["doctor", "grahp"])
    assert error.value.code == 2


def test_an_older_python_and_a_tree_that_is_not_installed(installed, capsys, monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.13.0")
    assert cli.main(["doctor"]) == 1
    assert "problem: Python 3.13.0 is not supported: install one that is >=3.11,<3.13" in capsys.readouterr().out
    installed.clear()
    assert cli.main(["doctor"]) == 0
    assert "not installed by pip" in " ".join(capsys.readouterr().out.split())


def test_what_is_broken_does_not_hide_the_rest(installed, capsys, monkeypatch):
    def torn():
        raise OSError("libcudart.so: cannot open\nmore")

    monkeypatch.setattr(fairseq, "CHECKS", {"torn": torn, "whole": lambda: doctor.Check(1, "all right")})
    monkeypatch.setitem(sys.modules, "fairseq_ext.doctor.machine", None)  # as its import fails without torch
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "  torn          cannot be checked: OSError: libcudart.so: cannot open\n  whole         all right\n" in out
    assert "problem: machine cannot be checked" in out and out.endswith("2 problems found\n")


# --- fairseq ----------------------------------------------------------------------------------------------------------


def test_a_second_fairseq_and_repairs_that_are_off(monkeypatch):
    monkeypatch.setattr("importlib.metadata.distributions", lambda: [types.SimpleNamespace(name="fairseq")])
    monkeypatch.setattr(compat, "apply", lambda: [])
    assert "fairseq shares its files with ve-fairseq" in fairseq.CHECKS["installed"]().problems[0]
    assert f"unset {compat.OFF_SWITCH}" in fairseq.CHECKS["repaired"]().problems[0]


# --- the machine ------------------------------------------------------------------------------------------------------


def test_the_processor_is_that_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.processor().text.startswith("unknown, ")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor\n")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    check = machine.processor()
    assert check.text.startswith("Some Processor, ") and "no AVX-512 BF16, AMX, " in check.text
    assert (check.value["AMX"], check.value["AVX-512 BF16"]) == (True, False)


def test_decoding_says_what_the_processor_lacks(monkeypatch):
    monkeypatch.setattr(packed_linear, "levels", lambda: 63)
    assert "--inference-dtype int8: no AVX-512 VNNI" in machine.decoding().text


CARD = types.SimpleNamespace(name="Some Card", major=9, minor=0, total_memory=80 * 2**30)


@pytest.mark.parametrize(
    ("build", "driver", "cards", "text", "problems"),
    [
        (None, "", 0, "no card; torch VERSION is built without CUDA, no NVIDIA driver is seen", 0),
        (None, "570.1", 0, "the driver is 570.1: install a build of torch with CUDA to use the card", 0),
        ("12.8", "", 0, "is built for CUDA 12.8, no NVIDIA driver is seen", 0),
        ("12.8", "450.2", 0, "no card; torch VERSION is built for CUDA 12.8, the driver is 450.2", 1),
        ("12.8", "570.1", 2, "Some Card, 80 GiB, capability 9.0\nSome Card, 80 GiB, capability 9.0; torch", 0),
    ],
)
def test_cuda(monkeypatch, tmp_path, build, driver, cards, text, problems):
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    if driver:
        line = (
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\nGCC version: 12.2.0 \n"
        )
        (tmp_path / "version").write_text(line)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: CARD)
    check = machine.cuda()
    assert text.replace("VERSION", torch.__version__) in check.text
    assert len(check.problems) == problems and len(check.value["cards"]) == cards


def test_kernels_are_used_or_say_why(monkeypatch):
    if not torch.cuda.is_available():
        assert machine.triton().text == "not used on cpu: kernels need a CUDA card"
    monkeypatch.setattr(machine, "_devices", lambda: [torch.device("cuda", 0), torch.device("cuda", 1)])
    monkeypatch.setattr(kernels, "why_unused", lambda device: "too old" if device.index else "")
    assert machine.triton().text == "used on cuda:0\nnot used on cuda:1: too old"
    assert not machine.triton().problems
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "Triton needs a C compiler: install gcc")
    assert not machine.triton().problems, "where no card would be used with one"
    monkeypatch.setattr(kernels, "why_unused", lambda device: kernels.cannot_compile())
    assert machine.triton().text.startswith("not used on cuda:0: Triton needs a C compiler")
    assert machine.triton().problems == ["Triton needs a C compiler: install gcc, or set FAIRSEQ_EXT_KERNELS=0"]


def test_compilers_and_fonts(monkeypatch, tmp_path):
    (tmp_path / "mycc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "mycc")
    monkeypatch.delenv("CXX", raising=False)
    check = machine.compilers()
    assert check.value == {"C": str(tmp_path / "mycc"), "C++": None} and "apt install g++" in check.text
    monkeypatch.setattr(machine, "without_font", lambda characters: {"中", "한"})
    assert "Japanese; figures show boxes for Chinese, Korean" in machine.fonts().text


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "new" / "below"))
    check = machine.folders()
    assert check.problems == [f"{tmp_path}/file/below cannot be written: set TRITON_CACHE_DIR to a folder for kernels"]
    assert check.value["fonts"]["writable"] and not check.value["kernels"]["writable"]
    assert not (tmp_path / "new").exists()
