"""Number formats: ``--bf16``, which fairseq takes as a request for a TPU."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_ext.compat.wrapping import wrapping

__all__ = ["keep_bfloat16_off_tpus"]


def keep_bfloat16_off_tpus() -> bool:
    """Let ``--bf16`` not choose the device: fairseq takes it for ``--tpu``, and then looks for ``torch_xla``."""
    from fairseq import options

    @wrapping(options, "parse_args_and_arch")
    def parse_args_and_arch(
        upstream: Any,
        parser: argparse.ArgumentParser,
        input_args: Sequence[str] | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        parsed = upstream(parser, input_args, *rest, **kwargs)
        args = parsed[0] if isinstance(parsed, tuple) else parsed
        if getattr(args, "bf16", False):
            words = sys.argv[1:] if input_args is None else input_args
            args.tpu = "--tpu" in words
        return parsed

    return True
