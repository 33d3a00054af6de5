"""Refusals: like this suite's own, those of fairseq end in one line that names the option, with exit code 2.

Errors of programs stay tracebacks: :func:`refusal` says which are which. ``LOGLEVEL=DEBUG`` shows all.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import dis
import functools
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from torch.multiprocessing import ProcessRaisedException

from fairseq_ext.compat.processes import scores_of_shares
from fairseq_ext.compat.stock_checks import check_stock_values
from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.errors import InputError, OptionError, first_line
from fairseq_ext.training.options import flag

__all__ = ["end_commands_in_one_line", "end_hydra_in_one_line", "refusal"]

MEANT_FOR_USERS = (AssertionError, ValueError, OSError, ImportError, NotImplementedError)
"""What fairseq raises, with a message, where an option or a file is wrong; besides ``Exception`` itself."""

HOMES = ("fairseq", "fairseq_cli")
GENERATE = ("fairseq_cli", "generate.py")
STEPS = {"train_step", "valid_step"}
"""Within these, and within the forward of a module, an error is one of the program."""

OPTIONS = {
    "Could not infer language pair": "--source-lang, --target-lang (or the data folder)",
    "Sentences lengths should not exceed": "--max-tokens",
    "The dataset is empty": "--max-tokens, --max-source-positions, --max-target-positions",
    "world size is": "--distributed-world-size",
    "Cannot resume training due to dataloader mismatch": "--batch-size, --max-tokens, --save-dir (batches differ)",
    "Neither args nor cfg exist": "--path (no checkpoint of fairseq)",
    "Error(s) in loading state_dict": "--path (trained with other dictionaries or another architecture)",
}
"""How messages start that name no option, and the option; whoever raises them."""


def refusal(error: BaseException, cfg: Any = None) -> InputError | None:
    """The refusal to show in place of an error of one of fairseq's commands; ``None`` for a fault of the program.

    An error is a refusal if a file cannot be read or written, or if fairseq itself raises it with a message, outside of
    a step. Errors that Python or PyTorch raises in an expression, and errors without a message, are none.

    Args:
        error: the error that ended the command.
        cfg: configuration of the command, in which the option is looked for.
    """
    if isinstance(error, InputError):
        return error
    if isinstance(error, ProcessRaisedException):  # its last line is the error of a process that it has started
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        return OptionError(message) if kind.startswith(f"{InputError.__module__}.") else None
    message = " ".join(str(error).split()).partition(": {'_name'")[0]  # some repeat the configuration
    if isinstance(error, OSError) and error.filename is not None:
        return OptionError(_with_option(f"{error.filename}: {error.strerror}", cfg))
    if not message or _in_a_step(error.__traceback__):
        return None
    deliberate = type(error) is Exception or isinstance(error, MEANT_FOR_USERS)
    deliberate |= isinstance(error, RuntimeError) and _names_option(message)
    if message.startswith(tuple(OPTIONS)) or (deliberate and _raised_by_fairseq(error.__traceback__)):
        return OptionError(_with_option(message, cfg))
    if key := getattr(error, "full_key", None):  # omegaconf: no value, or none of that type
        return OptionError(f"{flag(key.rpartition('.')[2])}: {first_line(error)}")
    return None


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _in_a_step(trace: TracebackType | None) -> bool:
    names = [frame.tb_frame.f_code.co_name for frame in _frames(trace)]
    return any(name in STEPS or name.startswith("forward") for name in names)


def _raised_by_fairseq(trace: TracebackType | None) -> bool:
    """Whether the error comes from a ``raise`` or an ``assert`` in fairseq."""
    *_, last = _frames(trace)
    code, place = last.tb_frame.f_code, last.tb_lasti
    if not set(HOMES) & set(Path(code.co_filename).parts):
        return False
    return place < len(code.co_code) and dis.opname[code.co_code[place]] == "RAISE_VARARGS"


def _with_option(message: str, cfg: Any) -> str:
    """The message with the option that it is about in front, if it names none itself."""
    for start, option in OPTIONS.items():
        if message.startswith(start):
            return f"{option}: {message}"
    if _names_option(message):
        return message
    words = [word.rstrip(":.;") for word in re.split(r"[\s'\"(),]+", message)]
    given = dict(_texts(cfg))
    for word in words:
        for name, value in given.items():
            if message.startswith(f"{value}:"):
                return f"{name} {message}"
            if word in (value, os.path.abspath(value)) or word.startswith(value.rstrip("/") + "/"):
                return f"{name} {value}: {message}"
    return message


def _names_option(message: str) -> bool:
    return re.search(r"(^|[\s(`])--[a-z]", message) is not None


def _texts(cfg: Any) -> Iterator[tuple[str, str]]:
    """The options of a configuration that are texts; files, folders and splits are among them."""
    items = vars(cfg) if isinstance(cfg, argparse.Namespace) else cfg if hasattr(cfg, "items") else {}
    for name, value in items.items():
        if isinstance(value, str) and len(value) > 1 and name != "_name":
            yield "data" if name == "data" else flag(name), value
        else:
            yield from _texts(value)


@contextlib.contextmanager
def _in_one_line(cfg: Any = None) -> Iterator[None]:
    """A context that raises a refusal in place of an error, where :func:`refusal` has one."""
    try:
        yield
    except Exception as error:
        refused = refusal(error, cfg)
        if refused is None or refused is error:
            raise
        _show(error)
        raise refused from error


def _show(error: BaseException) -> None:
    if os.environ.get("LOGLEVEL", "").upper() == "DEBUG":
        traceback.print_exception(error)


def end_commands_in_one_line() -> bool:
    """Let bad input end fairseq's commands in one line, from reading the command line to the end."""
    from fairseq import options
    from fairseq.dataclass import utils as dataclass_utils
    from fairseq.distributed import utils
    from fairseq.trainer import Trainer

    @wrapping(utils, "call_main")
    def call_main(upstream: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
        with _in_one_line(cfg):
            check_stock_values(cfg, Path(getattr(main, "__code__", upstream.__code__).co_filename).stem)
            return upstream(cfg, main, **kwargs)

    def generate(main: Any) -> Any:
        """The one command that calls its ``main`` by itself."""

        @functools.wraps(main)
        def generate_main(args: argparse.Namespace) -> Any:
            cfg = dataclass_utils.convert_namespace_to_omegaconf(args) if isinstance(args, argparse.Namespace) else args
            with _in_one_line(cfg), scores_of_shares(cfg):
                check_stock_values(cfg, "generate")
                return main(cfg)

        return generate_main

    @wrapping(options, "parse_args_and_arch")
    def parse_args_and_arch(upstream: Any, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        parser.error = _refuse_argument  # type: ignore[method-assign]
        caller = sys._getframe(2).f_globals  # the caller of the wrapper
        if Path(caller.get("__file__", "")).parts[-2:] == GENERATE and not hasattr(caller["main"], "__wrapped__"):
            caller["main"] = generate(caller["main"])
        words = args[0] if args else kwargs.get("input_args")
        if parser.get_default("task") is None and parser.parse_known_args(words)[0].task is None:
            raise OptionError("--task: must be that of the model")
        with _in_one_line():
            return upstream(parser, *args, **kwargs)

    @wrapping(dataclass_utils, "compose")
    def named_compose(upstream: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return upstream(*args, **kwargs)
        except Exception as error:
            merged = re.match(r"Error merging override [\w.]*?(\w+)=(.*)", str(error))
            if merged is None:
                raise
            dataclass_utils.logger.disabled = True  # it would repeat every option
            name, value = flag(merged[1]), merged[2]
            reason = first_line(error.__cause__) if error.__cause__ else "not a value for it"
            raise OptionError(f"{name}: {'is required' if value == 'null' else f'{value}: {reason}'}") from error

    @wrapping(Trainer, "__init__")
    def checked_init(upstream: Any, self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        check_stock_values(cfg, "train")  # a job of hydra comes here first
        upstream(self, cfg, *args, **kwargs)

    return True


def _refuse_argument(message: str) -> NoReturn:
    """End with the message of argparse, without the hundred lines of usage before it in fairseq's commands."""
    message = message.removeprefix("argument ").replace("invalid <lambda> value", "invalid value")
    choice = re.fullmatch(r"(.*: invalid choice: )'(.*)' \(choose from (.*)\)", message)
    if choice is not None and len(choice[3]) > 300:
        near = difflib.get_close_matches(choice[2], re.findall(r"[^\s',]+", choice[3]), n=3, cutoff=0.3)
        message = (
            f"{choice[1]}{choice[2]!r}; did you mean {' or '.join(near)}?" if near else f"{choice[1]}{choice[2]!r}"
        )
    raise OptionError(message)


def end_hydra_in_one_line() -> bool:
    """Let bad input end a hydra job as it ends every other program: hydra shows any ``Exception`` as a traceback."""
    from hydra.core import utils

    job: Any = utils.JobReturn
    kept = job.return_value

    def keep(self: Any, value: Any) -> None:
        refused = refusal(value, self.cfg) if isinstance(value, Exception) else None
        if refused is not None:
            _show(value)
            raise SystemExit(refused.code) from value
        kept.__set__(self, value)

    job.return_value = kept.setter(keep)
    return True
