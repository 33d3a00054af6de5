from __future__ import annotations

from fairseq_ext.training.pairs import paired_differences


def test_only_runs_of_both_count():
    result = paired_differences({"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 1.0, "a": 4.0, "d": 0.0})
    assert (result["runs"], result["first"], result["second"]) == (2, 1.5, 2.5)
    assert (result["difference"], result["std"]) == (1.0, 2.0)
    assert (result["better"], result["equal"], result["worse"]) == (1, 0, 1)
