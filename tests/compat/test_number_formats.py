"""``--bf16`` says nothing of the device."""

from __future__ import annotations

import pytest
from fairseq import options


@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
@pytest.mark.parametrize("tpu", [False, True])
def test_bfloat16_asks_for_no_tpu(flag: str, tpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data", "--task", "translation", "--arch", "transformer", flag, *(["--tpu"] if tpu else [])]
    parsed = options.parse_args_and_arch(options.get_training_parser(), words)
    assert parsed.bf16 and parsed.tpu == tpu
    monkeypatch.setattr("sys.argv", ["fairseq-train", *words])
    parsed, _ = options.parse_args_and_arch(options.get_training_parser(), parse_known=True)
    assert parsed.bf16 and parsed.tpu == tpu
