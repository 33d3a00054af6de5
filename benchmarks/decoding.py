"""Claim: with packed weights a Transformer decodes in less than half of fairseq's time on a CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.models import (
    QUICK_SENTENCES,
    batch,
    build,
    build_stock,
    decode,
    prepare_for_generation,
    stock_arguments,
    task,
)
from benchmarks.timing import Function, Row, rate_row

NOT_ON = {"cuda": "--inference-dtype is for CPUs"}
BEAM = 5
BATCHES = (1, 64)
TARGETS = {("float32", 1): 1.2, ("int8", 1): 2.5, ("int8", 64): 1.5}
# --inference-dtype, and the compute type of CTranslate2 beside it
DTYPES = {None: "float32", "float32": "float32", "bfloat16": None, "int8": "int8"}


def _save(model: nn.Module, quick: bool, folder: Path) -> Path:
    """A checkpoint and its dictionaries, as CTranslate2's converter reads them."""
    for side in ("src", "tgt"):
        task(quick).source_dictionary.save(str(folder / f"dict.{side}.txt"))
    arguments = stock_arguments(quick)
    arguments.task, arguments.source_lang, arguments.target_lang = "translation", "src", "tgt"
    path = folder / "checkpoint.pt"
    torch.save({"args": arguments, "model": model.state_dict()}, path)
    return path


def ctranslate2_decoders(model: nn.Module, quick: bool) -> Iterator[tuple[str, Any]]:
    """CTranslate2's translators of the same weights, one for each of its compute types."""
    import ctranslate2
    from ctranslate2.converters import FairseqConverter

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        FairseqConverter(str(_save(model, quick, folder)), str(folder)).convert(str(folder / "converted"))
        for kind in dict.fromkeys(filter(None, DTYPES.values())):
            threads = torch.get_num_threads()
            yield kind, ctranslate2.Translator(str(folder / "converted"), compute_type=kind, intra_threads=threads)


def decode_with_ctranslate2(translator: Any, quick: bool, sentences: int, tokens: int) -> Function:
    """Beam search over the sentences of :func:`benchmarks.models.decode`, to as many tokens per sentence."""
    words = task(quick).source_dictionary
    data = batch(quick, sentences)["src_tokens"]
    ends = (words.pad(), words.eos())
    texts = [[words[index] for index in row if index not in ends] for row in data.tolist()]
    lengths = {"min_decoding_length": tokens // sentences, "max_decoding_length": tokens // sentences}
    return lambda: translator.translate_batch(texts, beam_size=BEAM, **lengths)


def run(quick: bool) -> list[Row]:
    stock = build_stock(quick)
    translators = {}
    if importlib.util.find_spec("ctranslate2"):
        translators = dict(ctranslate2_decoders(stock, quick))
    else:
        print("CTranslate2 is not installed (extra benchmarks): no rows for it")
    stock = prepare_for_generation(stock, BEAM)
    rows = []
    for dtype, kind in DTYPES.items():
        model = prepare_for_generation(build(quick), BEAM, dtype)
        name = f"--inference-dtype {dtype}" if dtype else "without the option"
        for sentences in (QUICK_SENTENCES,) if quick else BATCHES:
            ours, tokens = decode(model, quick, sentences, BEAM)
            others = {"fairseq": decode(stock, quick, sentences, BEAM)[0]}
            if kind in translators:
                translator = decode_with_ctranslate2(translators[kind], quick, sentences, tokens)
                others[f"CTranslate2 {kind}"] = translator
            for other, reference in others.items():
                rows.append(
                    rate_row(
                        f"decoding, {name} / {other}, beam {BEAM}, batch {sentences}",
                        ours,
                        reference,
                        items=tokens,
                        unit="tokens/s",
                        pairs=1 if quick else 9 if sentences == 1 else 3,
                        target=TARGETS.get((dtype, sentences)) if other == "fairseq" else None,
                    )
                )
    return rows
