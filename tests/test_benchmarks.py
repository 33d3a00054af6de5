import contextlib
import importlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import timing
from benchmarks.__main__ import NAMES, format_row, main, not_on
from benchmarks.loss import LOG_END, SMOOTHING, plain_encouraging_loss
from benchmarks.models import build, equal_size_options, parameters
from benchmarks.timing import Row, memory_row, peak_bytes, rate_row, time_row
from fairseq_ext import kernels
from fairseq_ext.losses import encouraging_loss
from tests.helpers import ROOT


def test_quick_run_prints_every_ratio_and_writes_json(tmp_path, capsys):
    file = tmp_path / "rows.json"
    main(["loss", "norm", "cross_view", "loss", "--quick", "--json", str(file)])
    content = json.loads(file.read_text())
    rows = content["rows"]
    assert list(dict.fromkeys(row["claim"] for row in rows)) == ["loss", "norm", "cross_view"]
    stored = json.loads((ROOT / "docs/results/benchmarks_norm.json").read_text())["rows"]
    assert {(*row,) for row in rows} == {(*row,) for row in stored}
    assert all(math.isfinite(row["ratio"]) and min(row["ratio"], row["ours"], row["reference"]) > 0 for row in rows)
    assert len({(row["case"], row["unit"]) for row in rows}) == len(rows)
    assert content["environment"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert all(f"{row['ratio']:.2f}x" in printed and row["case"] in printed for row in rows)
    # a tiny size says nothing about a target
    assert all(row["target"] is None and row["met"] is None for row in rows)


def test_rows_are_kept_claim_by_claim_and_resumed(tmp_path, monkeypatch):
    """A run that is stopped keeps the claims that it has finished; the next one measures the others."""
    file, norm = tmp_path / "rows.json", importlib.import_module("benchmarks.norm")
    command = ["loss", "norm", "--quick", "--json", str(file), "--resume"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(norm, "run", stopped)
        main(command)
    before = json.loads(file.read_text())["rows"]
    assert {row["claim"] for row in before} == {"loss"}
    monkeypatch.setattr(importlib.import_module("benchmarks.loss"), "run", stopped)
    main(command)
    after = json.loads(file.read_text())["rows"]
    assert after[: len(before)] == before and {row["claim"] for row in after} == {"loss", "norm"}
    with pytest.raises(SystemExit, match="was measured elsewhere"):
        main([*command, "--threads", "2"])


def test_a_claim_that_fails_leaves_the_others(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    monkeypatch.setattr(importlib.import_module("benchmarks.norm"), "run", lambda quick: [1 / 0])
    with pytest.raises(SystemExit, match="error: norm: ZeroDivisionError: division by zero"):
        main(["norm", "loss", "kernels", "--quick", "--json", str(file)])
    content = json.loads(file.read_text())
    assert {row["claim"] for row in content["rows"]} == {"loss", "kernels"} and list(content["failed"]) == ["norm"]
    monkeypatch.undo()
    main(["norm", "loss", "--quick", "--json", str(file), "--resume"])
    content = json.loads(file.read_text())
    assert {row["claim"] for row in content["rows"]} >= {"norm", "loss"} and content["failed"] == {}


def stopped(quick: bool) -> list[Row]:
    raise KeyboardInterrupt


def test_a_claim_that_makes_no_sense_on_a_device_is_left_out(capsys, tmp_path, monkeypatch):
    main(["kernels", "--json", str(tmp_path / "rows.json")])
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == []
    assert "left out on cpu: kernels need a CUDA card" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "")
    kernels._lacks.cache_clear()
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
    assert {name for name, module in modules.items() if not not_on(module, torch.device("cuda"))} > {"kernels", "loss"}
    assert not_on(modules["totoro"], torch.device("cuda"))
    for reason in ("no compiler", "FAIRSEQ_EXT_KERNELS=0"):  # torch would be measured against torch
        monkeypatch.setattr(kernels, "cannot_compile", lambda: "no compiler")
        assert not_on(modules["kernels"], torch.device("cuda")) == reason
        monkeypatch.setenv("FAIRSEQ_EXT_KERNELS", "0")
    kernels._lacks.cache_clear()


def test_a_chosen_card_is_the_one_that_is_timed(monkeypatch):
    """Events and counts of memory are those of the current card, whichever inputs are made on."""
    current, cards = [0], []

    @contextlib.contextmanager
    def chosen(device):
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", chosen)
    event = {"record": lambda: cards.append(current[0]), "synchronize": lambda: None, "elapsed_time": lambda other: 1.0}
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: SimpleNamespace(**event))
    for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: cards.append(current[0]) or 1)
    with timing.inputs_on(torch.device("cuda", 3)):
        time_row("x", lambda: None, lambda: None, pairs=1)
        peak_bytes(lambda: None)
    assert set(cards) == {3} and len(cards) > 8 and current == [0]


def test_inputs_are_made_on_the_device_and_measured_without_choosing_one():
    """Choosing a device by default intercepts each call of torch's, which must not be timed."""
    devices = []
    with timing.inputs_on(torch.device("meta")):
        x = torch.ones(3)
        assert x.device.type == "meta"
        timing.time_row("x", lambda: devices.append(torch.ones(3).device.type), lambda: x + x, pairs=1)
        assert torch.ones(3).device.type == "meta"
    assert set(devices) == {"cpu"} and torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_imported(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["los"], "did you mean 'loss'?"),
        (["norm", "crossview"], "'crossview' is not one of kernels"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--json", "/no/such/folder/rows.json"], "--json /no/such/folder/rows.json"),
        (["--device", "meta"], "--device must be cpu or cuda, got meta"),
        (["--device", "tpu"], "--device tpu: "),
        (["--resume"], "--resume: has no effect without --json"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message):
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--quick"])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_ratio_is_ours_over_reference_in_every_unit():
    def work(size):
        return lambda: torch.ones(size).cumsum(0)

    heavy, light = work(400_000), work(4_000)
    assert time_row("x", heavy, light, pairs=3).ratio > 4
    assert rate_row("x", heavy, light, items=10, unit="tokens/s", pairs=3).ratio < 0.25
    assert memory_row("x", heavy, light).ratio == pytest.approx(100, rel=0.02)


def test_ratio_spread_and_medians_are_of_the_same_pairs(monkeypatch):
    """A machine that slows down between the sides of a pair: the medians name the other side as the faster one."""
    samples = iter([1.0, 0.9, 2.0, 1.9, 3.0, 3.3])
    monkeypatch.setattr(timing, "_calls", lambda *_: 1)
    monkeypatch.setattr(timing, "_seconds", lambda *_: next(samples))
    row = time_row("x", print, print, pairs=3)
    assert (row.ours, row.reference, row.pairs) == (2000.0, 1900.0, 3)
    assert (row.ratio, row.low, row.high) == pytest.approx((2 / 1.9, 3 / 3.3, 1 / 0.9))
    samples = iter([1.0, 0.9, 2.0, 1.9, 3.0, 3.3])
    rate = rate_row("x", print, print, items=4, unit="tokens/s", pairs=3)
    assert (rate.ours, rate.reference) == pytest.approx((2.0, 4 / 1.9))
    assert (rate.ratio, rate.low, rate.high) == pytest.approx((0.95, 0.9, 1.1))
    assert "[0.90, 1.10]" in format_row(rate) and "[" not in format_row(time_row_of_one())


def time_row_of_one() -> Row:
    return Row("x", 1.0, 1.0, "ms", 1.0, low=1.0, high=1.0)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=9))
def test_the_quotient_of_the_medians_lies_within_the_pairs(samples):
    with pytest.MonkeyPatch.context() as patch:
        times = iter(value for pair in samples for value in pair)
        patch.setattr(timing, "_calls", lambda *_: 1)
        patch.setattr(timing, "_seconds", lambda *_: next(times))
        row = time_row("x", print, print, pairs=len(samples))
    assert row.low <= row.ratio <= row.high
    # of an even number of pairs the medians are means of two samples
    if len(samples) % 2:
        assert row.low * (1 - 1e-9) <= row.ours / row.reference <= row.high * (1 + 1e-9)


def test_peak_bytes_counts_what_is_alive_at_once():
    def chain():
        first = torch.ones(1000)
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(chain) == pytest.approx(2 * 4000, abs=64)  # and a few wrapped numbers


def test_target_bounds_times_from_above_and_rates_from_below():
    assert Row("x", 1.0, 1.0, "ms", 1.2, 1.1).met is False
    assert Row("x", 1.0, 1.0, "tokens/s", 1.2, 1.1).met is True
    assert Row("x", 1.0, 1.0, "ms", 1.2).met is None


def test_plain_formula_is_the_same_loss():
    torch.manual_seed(0)
    logits, target = 6 * torch.randn(50, 20, dtype=torch.float64), torch.randint(20, (50,))
    ours = encouraging_loss(logits, target, label_smoothing=SMOOTHING, log_end=LOG_END)
    torch.testing.assert_close(plain_encouraging_loss(logits, target), ours)


def test_muse_is_sized_like_the_transformer():
    with torch.device("meta"):
        transformer = parameters(build(False))
        for options in ({"block": "muse-simple"}, equal_size_options(False, block="muse", muse_kernels="3,15")):
            assert parameters(build(False, **options)) == pytest.approx(transformer, rel=0.01)
