"""Number formats: an option that asks for hardware that nobody named."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["keep_bfloat16_off_tpus"]


def keep_bfloat16_off_tpus() -> bool:
    """Let ``--bf16`` say nothing of the device: fairseq takes it for ``--tpu``, and then looks for ``torch_xla``."""
    from fairseq import options

    upstream = options.parse_args_and_arch

    @functools.wraps(upstream)
    def parse_args_and_arch(
        parser: argparse.ArgumentParser, input_args: Sequence[str] | None = None, *rest: Any, **kwargs: Any
    ) -> Any:
        parsed = upstream(parser, input_args, *rest, **kwargs)
        args = parsed[0] if isinstance(parsed, tuple) else parsed
        if getattr(args, "bf16", False):
            words = sys.argv[1:] if input_args is None else input_args
            args.tpu = "--tpu" in words
        return parsed

    options.parse_args_and_arch = parse_args_and_arch
    return True
