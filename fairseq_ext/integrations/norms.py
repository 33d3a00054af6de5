"""AdaNorm and its siblings in place of the norms of any model."""

from __future__ import annotations

import dis
import fnmatch
import inspect
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_ext.integrations.trial import functions_of
from fairseq_ext.modules.normalization import NORM_CLASSES
from fairseq_ext.training.errors import OptionError, choose

__all__ = ["NormChange", "replace_norms"]

PARAMETER_FREE = tuple(norm for norm in NORM_CLASSES if norm != "layernorm")


class NormChange(NamedTuple):
    """A norm that :func:`replace_norms` replaces."""

    names: tuple[str, ...]
    """In the model; several where its layers share it."""
    replaced: str
    """The class that stood there."""
    shape: tuple[int, ...]
    by: str
    """The new norm, with its options."""
    dropped: tuple[str, ...]
    """Its parameters: the new norm has none, and adds none to the model."""
    trained: bool
    """Whether a dropped gain is not 1, or a bias not 0, everywhere."""


def replace_norms(
    model: nn.Module,
    norm: str = "adanorm",
    *,
    rms_norms: bool = False,
    names: str | Iterable[str] = "*",
    skip: Iterable[str] = (),
    dry_run: bool = False,
    eps: float | None = 1e-5,
    unbiased: bool = True,
    **options: Any,
) -> list[NormChange]:
    r"""Put AdaNorm, LayerNorm-simple or DetachNorm in place of the LayerNorms of a model.

    .. math:: y = \frac{x - \mu}{s} \quad\text{(LayerNorm-simple, DetachNorm)}, \qquad
        C\,(1 - k\,\mathrm{sg}(y))\,y \quad\text{(AdaNorm)}

    (Xu et al., "Understanding and Improving Layer Normalization", arXiv:1911.07013.) None of them has parameters, so
    gains and biases are dropped, and a trained model has to be trained further. Replace before the optimizer is made.
    A norm that layers share stays shared. A module that only has the name of a norm, or normalises another dimension,
    is refused by name.

    The gradient of LayerNorm-simple and DetachNorm needs their output: code that changes the output in place
    (``x = norm(x); x += y``, or ``nn.ReLU(inplace=True)`` after it) ends in an error of the backward pass and has to be
    rewritten.

    A model is loaded again in the way it was made: ``load_state_dict`` after ``replace_norms`` with the same arguments,
    or

        >>> model = AutoModel.from_pretrained(folder)  # it lists the gains and biases that are missing
        >>> replace_norms(model, "adanorm")

    Args:
        model: any module; it is changed in place.
        norm: ``"adanorm"``, ``"layernorm-simple"`` or ``"detachnorm"``.
        rms_norms: also replace RMSNorms (``nn.RMSNorm``, and classes of models that compute the same, Gemma's and T5's
            among them), which have no mean to subtract and no bias. Default: only LayerNorms.
        names: names of the norms to replace, or patterns such as ``"encoder.*"``. Default: all.
        skip: names or patterns of the norms among them that stay as they are.
        dry_run: only list what would change.
        eps: epsilon of the new norms. Default: 1e-5, as in the released code; None keeps each norm's own.
        unbiased: True (default, released code) or False (paper), see :class:`~fairseq_ext.modules.AdaNorm`.
        **options: the class's other options: ``scale`` and ``k`` of :class:`~fairseq_ext.modules.AdaNorm`, ``detach``
            of :class:`~fairseq_ext.modules.DetachNorm`.

    Returns:
        One :class:`NormChange` for each norm, in the order of the model.

    Raises:
        OptionError: there is nothing to replace; a name fits no norm; a norm computes something else, has a gain that
            the model reads (Mamba), hooks, or no weights yet (on the meta device); or ``norm`` does not have an option.
            The model stays as it was.

    Example:
        >>> for change in replace_norms(model, "adanorm", scale=2.0, dry_run=True):
        ...     print(change)
    """
    choose("norm", norm, PARAMETER_FREE)
    allowed = [name for name in inspect.signature(NORM_CLASSES[norm]).parameters if name != "normalized_shape"]
    for option in options:
        choose(f"option of {norm}", option, allowed)
    places = _selected(_norms(model, rms_norms), [names] if isinstance(names, str) else names, skip)
    if not places:
        hint = "" if rms_norms or not _norms(model, True) else "; its RMSNorms need rms_norms=True"
        raise OptionError(f"model: {type(model).__name__} has no LayerNorm to replace{hint}")

    changes = []
    for module, at in places.items():
        _check_replaceable(model, module, at)
        shape, own_eps, start = _check_norm(module, at[0])
        try:
            new = NORM_CLASSES[norm](shape, eps=own_eps if eps is None else eps, unbiased=unbiased, **options)
        except ValueError as error:
            raise OptionError(f"{at[0]}: {error}") from error
        parameters = dict(module.named_parameters())
        trained = any(bool((value != (0.0 if name == "bias" else start)).any()) for name, value in parameters.items())
        changes.append((new, NormChange(at, type(module).__name__, shape, repr(new), tuple(parameters), trained)))
    if not dry_run:
        for new, change in changes:
            for name in change.names:
                model.set_submodule(name, new)
        _keep_off_fused_layers(model)
    return [change for _, change in changes]


def _norms(model: nn.Module, rms_norms: bool) -> dict[nn.Module, tuple[str, ...]]:
    """Each norm, with all names that it has in the model."""
    places: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and (isinstance(module, nn.LayerNorm) or (rms_norms and _is_rms_norm(module))):
            places[module] = (*places.get(module, ()), name)
    return places


def _selected(
    places: dict[nn.Module, tuple[str, ...]], names: Iterable[str], skip: Iterable[str]
) -> dict[nn.Module, tuple[str, ...]]:
    """The modules with a name that fits a pattern of ``names``, and none that fits one of ``skip``."""

    def fitting(option: str, patterns: Iterable[str]) -> set[str]:
        fits = {
            pattern: fnmatch.filter((name for at in places.values() for name in at), pattern) for pattern in patterns
        }
        if idle := [pattern for pattern, matches in fits.items() if places and not matches]:
            raise OptionError(f"{option}: {idle[0]!r} is the name of no norm that could be replaced")
        return {name for matches in fits.values() for name in matches}

    wanted, skipped = fitting("names", names), fitting("skip", skip)
    return {module: at for module, at in places.items() if wanted & set(at) and not skipped & set(at)}


def _is_rms_norm(module: nn.Module) -> bool:
    # T5's LayerNorm, and the classes modelled on it, subtract no mean and have no bias.
    named = type(module).__name__.endswith(("RMSNorm", "LayerNorm")) and not isinstance(module, nn.LayerNorm)
    return isinstance(module, nn.RMSNorm) or (named and [*dict(module.named_parameters())] in (["weight"], []))


def _check_replaceable(model: nn.Module, module: nn.Module, names: tuple[str, ...]) -> None:
    """Refuse a norm that the model uses for more than its output."""
    reason = None
    if any(value.is_meta for value in module.parameters()):
        reason = "is on the meta device; load its weights before it is replaced"
    hooks = [name.strip("_") for name, value in vars(module).items() if name.endswith("_hooks") and value]
    if hooks or "forward" in vars(module):
        reason = f"has {hooks[0] if hooks else 'a forward of its own'}, which the new norm would not; remove that first"
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.TransformerEncoderLayer):
            continue  # see _keep_off_fused_layers
        if read := _read_of(type(parent), name.rpartition(".")[2]):
            reason = f"{type(parent).__name__} reads its {read}, which the new norm does not have"
    if reason is not None:
        raise OptionError(f"{names[0]}: {reason}; skip= leaves it as it is")


def _read_of(parent: type[nn.Module], child: str) -> str | None:
    """The parameter of its ``child`` that a class reads, as Mamba's layers do for the dtype."""
    for function in functions_of(parent):
        words = [instruction.argval for instruction in dis.get_instructions(function)]
        for of, read in itertools.pairwise(words):
            if of == child and read in ("weight", "bias"):
                return str(read)
    return None


def _check_norm(module: Any, name: str) -> tuple[tuple[int, ...], float, float]:
    """Shape, epsilon and untrained gain of a norm, after a check that it computes what its name says.

    Some classes with these names move the channels (ConvNeXt's) or add gates (Mamba's).
    """
    weight = getattr(module, "weight", None)
    own = isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    shape = tuple(module.normalized_shape) if own else () if weight is None else tuple(weight.shape)
    eps = next(
        (value for key in ("eps", "variance_epsilon") if (value := getattr(module, key, None)) is not None), 1e-5
    )
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return shape, eps, 1.0
    like = {"dtype": torch.float32} if weight is None else {"device": weight.device, "dtype": weight.dtype}
    try:
        with torch.no_grad():
            matches = [_untrained_gains(module, places, shape, eps, like) for places in ((2, 3), (2, 3, 2))]
            if starts := sorted(set.intersection(*matches)):
                return shape, eps, starts[-1]
    except (RuntimeError, TypeError, ValueError):
        pass
    raise OptionError(
        f"{name}: {type(module).__name__} is no plain norm of its last dimension; skip= leaves it as it is"
    )


def _untrained_gains(module: Any, places: tuple[int, ...], shape: tuple[int, ...], eps: float, like: Any) -> set[float]:
    """The untrained gain in each of the formulas that the norm agrees with on inputs of so many ``places``."""
    x = torch.arange(math.prod(places) * math.prod(shape), **like).sin().view(*places, *shape)
    weight, plain = getattr(module, "weight", None), F.rms_norm(x, shape, eps=eps)
    if isinstance(module, nn.LayerNorm):
        formulas = {1.0: F.layer_norm(x, shape, weight, module.bias, eps)}
    else:  # Gemma's gain is 1 + weight
        formulas = {1.0: plain} if weight is None else {1.0: plain * weight, 0.0: plain * (1 + weight)}
    output = module(x)
    return {start for start, expected in formulas.items() if torch.allclose(output, expected, atol=2e-2, rtol=2e-2)}


def _keep_off_fused_layers(model: nn.Module) -> None:
    """Turn off torch's fused inference of encoder layers, which reads the gains and biases of their norms."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
