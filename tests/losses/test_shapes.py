"""No loss broadcasts a tensor of a wrong shape, or reads a part of it: every public loss, and every tensor of it."""

from __future__ import annotations

import inspect

import pytest
import torch

from fairseq_ext import losses

ROWS, CLASSES = 4, 3
LOGITS, INDICES = torch.randn(ROWS, CLASSES), torch.tensor([0, 2, 1, 1])
SHARES, PER_CLASS, PER_ROW = LOGITS.softmax(-1), torch.ones(CLASSES), torch.ones(ROWS)
COUNTED = {"input": LOGITS, "target": INDICES, "class_counts": PER_CLASS, "sample_weight": PER_ROW}
SOFT = {"input": LOGITS, "target": SHARES, "weight": PER_ROW}
MATRICES = SHARES.expand(2, ROWS, CLASSES)
ARGUMENTS = {
    "EncouragingLoss": {"weight": PER_CLASS},
    "binary_encouraging_loss": {"input": LOGITS, "target": SHARES, "weight": torch.ones(ROWS, CLASSES)},
    "class_balanced_softmax_loss": COUNTED,
    "class_weights": {"class_counts": PER_CLASS},
    "distillation_kl": {"input": LOGITS, "teacher": LOGITS},
    "encouraging_loss": {"input": LOGITS, "target": INDICES, "weight": PER_CLASS},
    "encouraging_loss_terms": {"input": LOGITS, "target": INDICES, "weight": PER_CLASS},
    "focal_loss": COUNTED,
    "fused_linear_encouraging_loss": {
        **{"hidden": torch.randn(ROWS, 5), "weight": torch.randn(CLASSES, 5), "target": INDICES},
        **{"bias": PER_CLASS, "class_weight": PER_CLASS},
    },
    "halted_focal_loss": {"input": LOGITS, "target": SHARES},
    "logit_adjusted_cross_entropy": COUNTED,
    "matrix_kl": {"p": MATRICES, "q": MATRICES, "rows": torch.ones(2)},
    "mirror_bonus_loss": {"input": LOGITS, "target": INDICES},
    "reduce_weighted": {"loss": PER_ROW, "sample_weight": PER_ROW},
    "reweighted_cross_entropy": COUNTED,
    "soft_target_cross_entropy": SOFT,
    "soft_target_kl": SOFT,
    "softmax_focal_loss": {"input": LOGITS, "target": INDICES},
}
ALONE = {"class_weights"}  # of any number of classes
GROWS = {("binary_encouraging_loss", "weight")}  # broadcasts, as torch's


def test_every_loss_and_every_tensor_that_it_takes_is_in_the_table():
    for name in set(losses.__all__) - {"bonus_schedule"}:
        tensors = {
            argument
            for argument, parameter in inspect.signature(getattr(losses, name)).parameters.items()
            if parameter.annotation in ("Tensor", "Tensor | None") and argument != "total"
        }
        assert ARGUMENTS[name].keys() == tensors, name


def call(name, arguments):
    if name == "EncouragingLoss":
        return losses.EncouragingLoss(**arguments)(LOGITS, INDICES)
    return getattr(losses, name)(**arguments)


@pytest.mark.parametrize("name", sorted(ARGUMENTS.keys() - ALONE))
def test_an_argument_of_another_shape_is_refused(name):
    arguments = ARGUMENTS[name]
    call(name, arguments)
    first = next(iter(arguments)) if len(arguments) > 1 else None  # by which the others are judged
    for argument, value in arguments.items():
        if argument == first:
            continue
        wrong = [value.unsqueeze(0), value.expand(2, *value.shape)]
        wrong += [] if (name, argument) in GROWS else [value[:1], value.unsqueeze(-1), value[..., :1]]
        for other in wrong:
            with pytest.raises(ValueError, match=r"must (hold|have|be|broadcast)") as error:
                call(name, {**arguments, argument: other})
            assert "\n" not in str(error.value)


def test_a_soft_target_mixes_the_halted_focal_losses_of_both():
    one, zero = (losses.halted_focal_loss(LOGITS, torch.full_like(LOGITS, value), "none") for value in (1.0, 0.0))
    mixed = losses.halted_focal_loss(LOGITS, SHARES, "none")
    torch.testing.assert_close(mixed, SHARES * one + (1 - SHARES) * zero)


INDEXED = [name for name, arguments in ARGUMENTS.items() if arguments.get("target") is INDICES] + ["EncouragingLoss"]


def of_target(name, target):
    if name == "EncouragingLoss":
        return losses.EncouragingLoss()(LOGITS, target)
    value = getattr(losses, name)(**(ARGUMENTS[name] | {"target": target}))
    return torch.stack(value).sum() if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", INDEXED)
def test_class_indices_of_any_whole_numbers_are_the_same(name):
    """torch indexes with uint8 as with a mask."""
    expected = of_target(name, INDICES)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32):
        assert torch.equal(of_target(name, INDICES.to(dtype)), expected), dtype
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=r"target must (be class indices|have shape)"):
            of_target(name, INDICES.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_of_class_weights_is_not_one_of_half_precision(dtype):
    """Whose largest number is less than there are examples here, or whose next number is far."""
    torch.manual_seed(0)
    logits, target = torch.randn(70000, CLASSES).to(dtype), torch.randint(CLASSES, (70000,))
    weight = torch.tensor([1.0, 2.0, 3.0])
    expected = losses.encouraging_loss(logits.float(), target, weight)
    got = losses.EncouragingLoss(weight=weight).to(dtype)(logits, target)
    torch.testing.assert_close(got, expected)
    fused = losses.fused_linear_encouraging_loss(
        logits, torch.eye(CLASSES, dtype=dtype), target, class_weight=weight.to(dtype)
    )
    torch.testing.assert_close(fused, expected)
