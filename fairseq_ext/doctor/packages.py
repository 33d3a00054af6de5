"""Which packages that this one and its extras need are installed, by this package's metadata."""

from __future__ import annotations

import email.message
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fairseq_ext
from fairseq_ext.doctor.check import Check
from fairseq_ext.training.errors import choose

__all__ = ["extra", "extras", "python", "this"]

OURS = "fairseq-ext"
CORE = "(core)"
"""In place of an extra: what is always needed."""


def this() -> Check:
    folder = Path(fairseq_ext.__file__).parent
    version, installed = fairseq_ext.__version__, _about(OURS).get("Version")
    note, problems = "", []
    if installed is None:
        note = ", not installed by pip: what it needs is not known here (pip install .)"
    elif installed != version:
        problems = [f"this is fairseq-ext {version}, but {installed} is installed: pip install it again"]
    return Check({"version": version, "folder": str(folder)}, f"{version} ({folder}){note}", problems)


def python() -> Check:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    supported = SpecifierSet(_about(OURS).get("Requires-Python", ""))
    wrong = not supported.contains(version, prereleases=True)
    return Check(
        {"version": version, "executable": sys.executable, "system": system},
        f"{version} ({sys.executable}), {system}",
        [f"Python {version} is not supported: install one that is {_bounds(supported)}"] if wrong else [],
    )


def extras(wanted: Sequence[str]) -> list[str]:
    """The names that :func:`extra` takes.

    Raises:
        OptionError: one of ``wanted`` is no extra.
    """
    names = _about(OURS).get_all("Provides-Extra", [])
    for name in wanted:
        choose("EXTRA", name, names)
    return [CORE, *names]


def extra(name: str, wanted: Sequence[str] = ()) -> Check:
    """The packages of an extra; a missing one is a problem where the extra is ``wanted``, or is none: the core."""
    installed, missing, value, problems = [], [], {}, []
    for requirement in _requirements(OURS, "" if name == CORE else name):
        bounds = _bounds(requirement.specifier)
        version = _about(requirement.name).get("Version")
        value[requirement.name] = {"installed": version, "supported": bounds}
        if version is None:
            missing.append(requirement.name)
        else:
            installed.append(f"{requirement.name} {version}")
            if not requirement.specifier.contains(version, prereleases=True):
                does_not = "does not work with this version of fairseq-ext"
                problems.append(f"{installed[-1]} {does_not}: pip install '{requirement.name}{bounds}'")
    if missing and (name == CORE or name in wanted):
        of = OURS if name == CORE else f"{OURS}[{name}]"
        problems.append(f"{', '.join(missing)} not installed: pip install '{of}'")
    text = ", ".join(installed) + "; " * bool(installed and missing) + "missing: " * bool(missing) + ", ".join(missing)
    return Check(value, text, problems)


def _about(name: str) -> email.message.Message:
    """The metadata of an installed package; empty where it is not installed."""
    try:
        return metadata.metadata(name)  # type: ignore[return-value]
    except metadata.PackageNotFoundError:
        return email.message.Message()


def _requirements(package: str, extra: str) -> Iterator[Requirement]:
    """What ``extra`` adds to a package on this machine; without a name, what the package needs itself.

    Of requirements with extras of their own, as ``sacrebleu[ja]``, those follow. Extras that only name others add none.
    """
    for line in _about(package).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        always, with_extra = (not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in ("", extra))
        applies = with_extra and not always if extra else always
        if applies and requirement.name != OURS:
            yield requirement
            for further in sorted(requirement.extras):
                yield from _requirements(requirement.name, further)


def _bounds(specifier: SpecifierSet) -> str:
    return ",".join(sorted(map(str, specifier), reverse=True))  # the lowest version first
