from __future__ import annotations

from fairseq_ext.training.pairs import paired_differences


def test_only_runs_of_both_count():
    result = paired_differences({"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 1.0, "a": 4.0, "d": 0.0})
    assert (result["runs"], result["first"], result["second"]) == (2, 1.5, 2.5)
    assert (result["difference"], result["std"]) == (1.0, 2.0)
    assert (result["better"], result["equal"], result["worse"]) == (1, 0, 1)


def test_less_of_a_loss_is_better_and_neither_of_a_count():
    first, second = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 2.0, "b": 3.0, "c": 1.0}
    of_loss, of_neither = (paired_differences(first, second, lower) for lower in (True, None))
    assert of_loss["difference"] == of_neither["difference"] == 0
    assert (of_loss["better"], of_loss["equal"], of_loss["worse"]) == (1, 0, 2)
    assert (of_neither["higher"], of_neither["equal"], of_neither["lower"]) == (2, 0, 1)
    assert not {"better", "worse"} & of_neither.keys()
    assert list(of_loss) == list(paired_differences(first, second))
