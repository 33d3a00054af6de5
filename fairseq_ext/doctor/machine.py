"""What this machine has for training and decoding: processor, cards, compilers, fonts, folders to write in."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch

from fairseq_ext import kernels
from fairseq_ext.doctor.check import Check
from fairseq_ext.fonts import without_font
from fairseq_ext.modules.packed_linear import INFERENCE_DTYPES, processor_note

__all__ = ["CHECKS"]

CPUINFO = Path("/proc/cpuinfo")
DRIVER = Path("/proc/driver/nvidia/version")
# What products in few bits are fast with: the instructions, and torch's question for them.
INSTRUCTIONS = {
    "AVX-512 BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
    "AVX-512 VNNI": "_is_vnni_supported",
}
COMPILERS = {"C": ("CC", ("gcc", "clang", "cc")), "C++": ("CXX", ("g++", "clang++", "c++"))}
# A character of each script that names in data may be written in.
SCRIPTS = {"Cyrillic": "Ж", "Arabic": "ع", "Hindi": "ह", "Chinese": "中", "Japanese": "あ", "Korean": "한"}
# What is kept there, the variable that moves it, and where it lies without.
FOLDERS = [
    ("temporary files", "TMPDIR", "{temporary}"),
    ("compiled models", "TORCHINDUCTOR_CACHE_DIR", "{temporary}/torchinductor_{user}"),
    ("kernels", "TRITON_CACHE_DIR", "~/.triton/cache"),
    ("fonts", "MPLCONFIGDIR", "~/.cache/matplotlib"),
]


def processor() -> Check:
    name = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text() if CPUINFO.exists() else "", re.MULTILINE)
    has = {instructions: getattr(torch.cpu, asks)() for instructions, asks in INSTRUCTIONS.items()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    value = {"name": name[1] if name else None, "cores": cores, "threads": torch.get_num_threads(), **has}
    features = ", ".join(instructions if there else f"no {instructions}" for instructions, there in has.items())
    return Check(value, f"{value['name'] or 'unknown'}, {value['threads']} threads on {cores} cores; {features}")


def decoding() -> Check:
    notes = {dtype: processor_note(dtype) or "at full speed" for dtype in INFERENCE_DTYPES}
    alike = {note: ", ".join(dtype for dtype in notes if notes[dtype] == note) for note in notes.values()}
    return Check(notes, "\n".join(f"--inference-dtype {dtypes}: {note}" for note, dtypes in alike.items()))


def cuda() -> Check:
    build, driver = torch.version.cuda, None
    if DRIVER.exists() and (version := re.search(r"\s(\d+\.\d[\d.]*)\s", DRIVER.read_text())):
        driver = version[1]
    cards = []
    for device in _devices():
        card = torch.cuda.get_device_properties(device)
        capability = f"{card.major}.{card.minor}"
        cards.append({"name": card.name, "capability": capability, "memory": round(card.total_memory / 2**30)})
    of_torch = f"torch {torch.__version__} is built " + (f"for CUDA {build}" if build else "without CUDA")
    of_driver = f"the driver is {driver}" if driver else "no NVIDIA driver is seen"
    hint = ": install a build of torch with CUDA to use the card" if driver and not build else ""
    lines = [f"{card['name']}, {card['memory']} GiB, capability {card['capability']}" for card in cards] or ["no card"]
    lines[-1] += f"; {of_torch}, {of_driver}{hint}"
    unseen = build and driver and not cards
    problems = [f"torch sees no card, although {of_driver}: {_reason()}"] if unseen else []
    return Check({"cards": cards, "build": build, "driver": driver}, "\n".join(lines), problems)


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)]


def _reason() -> str:
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).strip().partition("\n")[0]
    return "is CUDA_VISIBLE_DEVICES empty, or the driver too old for this build?"


def triton() -> Check:
    reasons = {str(device): kernels.why_unused(device) for device in _devices() or [torch.device("cpu")]}
    text = "\n".join(f"not used on {device}: {why}" if why else f"used on {device}" for device, why in reasons.items())
    problem = kernels.cannot_compile() if _devices() else ""
    return Check(
        {device: why or "used" for device, why in reasons.items()},
        text,
        [f"{problem}, or set {kernels.SWITCH}=0"] if problem and problem in reasons.values() else [],
    )


def compiler(language: str) -> str | None:
    variable, names = COMPILERS[language]
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get(variable), *names]))), None)


def compilers() -> Check:
    paths = {language: compiler(language) for language in COMPILERS}
    text = ", ".join(f"{language}: {path or 'none'}" for language, path in paths.items())
    need = "" if all(paths.values()) else "; torch.compile needs both, Triton the first (on Debian: apt install g++)"
    return Check(paths, text + need)


def fonts() -> Check:
    missing = without_font(set(SCRIPTS.values()))
    drawn = {script: character not in missing for script, character in SCRIPTS.items()}
    boxes = [script for script, there in drawn.items() if not there]
    have = ", ".join(script for script, there in drawn.items() if there) or "Latin only"
    note = f"; figures show boxes for {', '.join(boxes)}: install fonts such as Noto" if boxes else ""
    return Check(drawn, have + note)


def folders() -> Check:
    value, lines, problems = {}, [], []
    for what, variable, default in FOLDERS:
        place = os.environ.get(variable) or default.format(temporary=tempfile.gettempdir(), user=getpass.getuser())
        folder = Path(place).expanduser()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        writable = there.is_dir() and os.access(there, os.W_OK)
        free = shutil.disk_usage(there).free / 2**30
        value[what] = {"folder": str(folder), "writable": writable, "free": round(free, 1)}
        lines.append(f"{what} in {place}" + ("" if writable else ", which cannot be written"))
        if not writable:
            problems.append(f"{folder} cannot be written: set {variable} to a folder for {what}")
    return Check(value, "; ".join(lines), problems)


CHECKS = {
    "processor": processor,
    "decoding": decoding,
    "CUDA": cuda,
    "kernels": triton,
    "compilers": compilers,
    "fonts": fonts,
    "folders": folders,
}
