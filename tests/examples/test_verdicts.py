"""The verdicts of RESULTS.md: the rule at its borders, and what each part counts as a baseline that has not learned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from examples.results.claims import claims_of
from examples.results.learned import Limit
from examples.results.paired import Paired
from examples.results.renode_gains import relation
from examples.results.verdicts import Claim, Verdict, page


def claim(low: float, high: float, pairs: int = 3, published: float | None = None, *limits: Limit) -> Claim:
    paired = Paired((low + high) / 2, low, high, pairs, 0.01)
    return Claim("M", "helps", "a set", "The table", paired, "points", published=published, limits=limits)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 2.0, Verdict.REPRODUCED),
        (0.0, 2.0, Verdict.SPREAD),
        (-1.0, 1.0, Verdict.SPREAD),
        (-2.0, 0.0, Verdict.SPREAD),
        (-2.0, -0.01, Verdict.NOT_REPRODUCED),
    ],
)
def test_the_rule(low, high, verdict):
    """Also with a limit that is not decisive; never with two pairs, nor with a decisive limit."""
    limit = Limit("data", "other data")
    assert claim(low, high).verdict is verdict and claim(low, high, 3, None, limit).verdict is verdict
    assert claim(low, high, 2).verdict is Verdict.NOT_TESTABLE
    assert claim(low, high, 3, None, limit, Limit("recipe", "below", True)).verdict is Verdict.NOT_TESTABLE
    assert claim(low, high)._replace(paired=None).verdict is Verdict.NOT_TESTABLE
    assert claim(low, high)._replace(paired=Paired.of([5.0])).verdict is Verdict.NOT_TESTABLE


def test_why_there_is_no_better_answer():
    """The method, where the published gain is excluded; the budget, where it may be there; nothing where it is."""

    def why(*arguments: Any) -> list[str]:
        return [f"{limit.cause}: {limit.text}" for limit in claim(*arguments).reasons()]

    assert why(-1.0, 0.5, 3, 0.6) == ["method: a gain as large as the published +0.6 is excluded"]
    assert why(-1.0, 0.5, 3, 0.5)[0].startswith("budget: the published gain of +0.5 fits the interval: more seeds")
    assert why(-1.0, 0.5)[0].startswith("budget: gains of up to +0.50 fit the interval")
    assert why(-1.0, -0.5) == ["method: worse than the baseline"] and why(0.5, 1.0) == []
    first, second = why(-1.0, 0.5, 1, 0.6, Limit("data", "other data"), Limit("recipe", "below", True))[:2]
    assert (first, second) == ("budget: 1 seed; 3 are needed", "recipe: below"), "decisive ones first, none of a spread"


def test_the_evidence_is_one_cell():
    paired = Paired.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    shown = claim(0, 1)._replace(paired=paired, pairs="splits", better=(11, 12)).evidence()
    assert shown == "+3.50 [+1.54, +5.46] points, 6 splits, 11/12 better, signed ranks p 0.031"
    assert claim(0, 1)._replace(paired=Paired.of([1.0])).evidence() == "+1.00 points, 1 seed"
    assert claim(0, 1)._replace(paired=None).evidence() == "none"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.09, 0.5, Verdict.REPRODUCED),
        (-0.1, 0.5, Verdict.SPREAD),
        (-0.5, -0.1, Verdict.SPREAD),
        (-0.5, -0.11, Verdict.NOT_REPRODUCED),
        (0.2, 0.5, Verdict.REPRODUCED),
    ],
)
def test_a_claim_that_nothing_is_lost(low, high, verdict):
    """Its margin takes the place of 0, in the verdict, in what would narrow it and in the test that Holm counts."""
    asked = claim(low, high)._replace(margin=0.1)
    assert asked.verdict is verdict and "a loss of 0.1 counts as none" in asked.evidence()
    said = [limit.text for limit in asked.reasons()]
    assert (
        said
        == {
            Verdict.REPRODUCED: [],
            Verdict.SPREAD: ["losses of more than 0.1 points fit the interval: more seeds would narrow it"],
            Verdict.NOT_REPRODUCED: ["it loses more than 0.1 points"],
        }[verdict]
    )
    assert asked._replace(paired=Paired.of([-0.5])).verdict is Verdict.NOT_TESTABLE


def test_a_gain_below_the_published_one_is_said_where_it_is_reproduced_too():
    below = claim(0.5, 1.0, 3, 1.1)
    assert below.verdict is Verdict.REPRODUCED
    assert [limit.text for limit in below.reasons()] == ["a gain as large as the published +1.1 is excluded"]
    assert claim(0.5, 1.0, 3, 1.0).reasons() == []


def test_the_page_counts_and_corrects():
    claims = [claim(0.1, 1.0)._replace(paired=Paired(0.5, 0.1, 1.0, 3, p)) for p in (0.02, 0.03)]
    claims += [claim(-1.0, 1.0)._replace(paired=Paired(0.0, -1.0, 1.0, 3, 0.9)), claim(0.1, 1.0, 2)]
    text = page(claims)
    assert "Of 4 tests of 1 claims: 2 reproduced, 1 in the spread, 0 not reproduced, 1 not testable here." in text
    assert (
        "the 3 that could be made, 0 of those reproduced and 0 of those not reproduced remain" in text
    )  # 0.02 > 0.05 / 3
    others = page([*claims, claims[0]._replace(ours=True)])
    assert (
        "Of 4 tests of 1 claims: 2 reproduced, 1 in the spread" in others
        and "; the other 1 are our questions." in others
    )
    assert others.count("| helps (our question) |") == 1
    artefact = claims[0]._replace(limits=(Limit("method", "by rounding"),))
    assert "Of 2 tests of 1 claims: 2 reproduced (1 of them with a limit of *method*), 0 in" in page(
        [claims[0], artefact]
    )
    sure = [*claims[:3], claims[0]._replace(paired=Paired(0.5, 0.1, 1.0, 3, 0.001))]
    assert "the 4 that could be made, 1 of those reproduced" in page(sure)
    assert "| budget 1 |" in text and "\n1. *budget*, gains of up to +1.00 fit" in text
    assert "| budget 2 |" in text and "\n2. *budget*, 2 seeds; 3 are needed" in text
    assert text.count("[reproduced](#the-table)") == 2 and len(re.findall(r"^\| M \|", text, re.MULTILINE)) == 4


def test_holm_counts_our_questions_too():
    """0.03 is kept as the second of two, and not as the second of three."""
    claims = [claim(0.1, 1.0)._replace(paired=Paired(0.5, 0.1, 1.0, 3, p)) for p in (0.001, 0.03)]
    ours = claim(-1.0, 1.0)._replace(paired=Paired(0.0, -1.0, 1.0, 3, 0.04), ours=True)
    assert "over the 2 that could be made, 2 of those reproduced and 0" in page(claims)
    assert "over the 3 that could be made, 1 of those reproduced and 0" in page([*claims, ours])


def test_holm_takes_the_test_against_the_margin():
    """The differences hardly differ from 0, which is what the claim says; that nothing is lost is what is tested."""
    paired = Paired.of([0.01, -0.01, 0.0])
    asked = claim(0, 1)._replace(paired=paired, margin=0.1)
    assert paired.p == pytest.approx(1.0) and asked.tested.p < 0.01
    assert "over the 1 that could be made, 1 of those reproduced" in page([asked])


def test_a_run_without_a_difference_is_not_better():
    assert Claim.of_runs("M", "helps", "toys", "The table", [1.0, 0.0, -1.0], "points").better == (1, 3)


# --- what each part takes for a baseline that has not learned --------------------------------------------------------


def verdicts(part: str, *contents: dict[str, Any]) -> list[Verdict]:
    return [claim.verdict for claim in claims_of(part, list(contents))]


def causes(part: str, content: dict[str, Any]) -> list[set[str]]:
    return [{limit.cause for limit in claim.reasons() if limit.decisive} for claim in claims_of(part, [content])]


def translation(last: float, gains: Iterable[float], updates: int = 1000, size: str = "small") -> dict[str, Any]:
    curve = [[updates // 2, 2.0], [updates, last]]
    rows = [{"system": "Transformer", "seed": n, "sacrebleu": 30.0} for n, _ in enumerate(gains)]
    rows += [{"system": "AdaNorm", "seed": n, "sacrebleu": 30.0 + gain} for n, gain in enumerate(gains)]
    return {"size": size, "name": "n", "rows": [{**row, "curve": curve, "updates": updates} for row in rows]}


def test_translation_is_judged_when_it_has_converged():
    gains = (0.5, 0.6, 0.7)
    assert verdicts("translation", translation(2.0, gains)) == [Verdict.REPRODUCED]
    assert verdicts("translation", translation(2.0, [-gain for gain in gains])) == [Verdict.NOT_REPRODUCED]
    assert causes("translation", translation(1.9, gains)) == [{"budget"}]
    (judged,) = claims_of("translation", [translation(2.0, gains, 900), translation(2.0, (0, 1), 8000, "converged")])
    assert judged.verdict is Verdict.NOT_TESTABLE and "8,000 updates" in judged.here, "the longest, not the best"
    (judged,) = claims_of("translation", [translation(2.0, gains, 900), translation(2.0, (0,), 8000, "converged")])
    assert judged.verdict is Verdict.REPRODUCED and "900 updates" in judged.here, "one seed is no test"


def test_the_fusion_is_chosen_by_validation():
    content = translation(2.0, (0, 0, 0))
    for system, bits, bleu in (("GCA, mean", 1.9, 29.0), ("GCA, gate", 2.0, 35.0)):
        curve = [[500, bits], [1000, bits]]
        row = {"system": system, "sacrebleu": bleu, "curve": curve, "updates": 1000}
        content["rows"] += [{**row, "seed": seed} for seed in range(3)]
    gca = next(claim for claim in claims_of("translation", [content]) if claim.method == "GCA")
    assert "GCA, mean (best on valid)" in gca.here and gca.paired and gca.paired.mean == -1
    single = {**content["rows"][-1], "system": "GCA, concat", "seed": 0, "curve": [[500, 1.0], [1000, 1.0]]}
    with_single = {**content, "rows": [*content["rows"], single]}
    gca = next(claim for claim in claims_of("translation", [with_single]) if claim.method == "GCA")
    assert "GCA, mean" in gca.here, "one seed is no choice"
    with_single["rows"] = [row for row in with_single["rows"] if row["system"] != "GCA, gate"]
    gca = next(claim for claim in claims_of("translation", [with_single]) if claim.method == "GCA")
    assert gca.here.endswith("GCA, mean"), "one seed is none to choose from, though its validation is better"
    content["rows"] = [row for row in content["rows"] if row["system"] != "GCA, mean"]
    gca = next(claim for claim in claims_of("translation", [content]) if claim.method == "GCA")
    assert gca.here.endswith("GCA, gate"), "nothing was chosen"


def test_other_initial_weights_are_told_from_the_method():
    """With a Transformer of the same weights in the table, a question of ours says what is left without them."""

    def rows(system: str, bleu: float) -> list[dict[str, Any]]:
        row = {"system": system, "updates": 1000, "curve": [[500, 2.0], [1000, 2.0]]}
        return [{**row, "seed": seed, "sacrebleu": bleu + seed / 10} for seed in range(3)]

    content = {"size": "small", "name": "n", "rows": rows("Transformer", 30.0) + rows("MUSE", 31.0)}
    (muse,) = claims_of("translation", [content])
    assert muse.limits[0].text.endswith("`--init km`: a Transformer with them, not measured yet")
    content["rows"] += rows("Transformer, km", 30.75)
    muse, same = claims_of("translation", [content])
    assert (muse.paired.mean, muse.ours, same.paired.mean, same.ours) == (1.0, False, 0.25, True)
    assert "row below" in muse.limits[0].text and not any("--init" in limit.text for limit in same.limits)


def renode(dataset: str, level: float, apart: float = 0.0, gains: Iterable[float] = (0.01, 0.011, 0.012)) -> dict:
    off = {f"split{s}-init{i}": level + i * apart for s, _ in enumerate(gains) for i in range(2)}
    on = {name: value + [*gains][int(name[5])] for name, value in off.items()}
    sides = {
        side: {
            name: {"weighted_f1": value, "totoro": int(name[5]) / 10, "curve": [[8, 0.5], [10 + int(name[5]), 0.5]]}
            for name, value in runs.items()
        }
        for side, runs in (("off", off), ("on", on))
    }
    cell = {"dataset": dataset, "model": "gcn", "loss": "ce", "split": "balanced"}
    return {"recipe": "released", "rows": [{**cell, **sides}]}


def test_renode_is_judged_where_the_baseline_has_learned():
    assert verdicts("renode", renode("Computers", 0.801), renode("Cora", 0.5)) == [Verdict.REPRODUCED] * 2
    assert causes("renode", renode("Computers", 0.799)) == causes("renode", renode("Photo", 0.89)) == [{"recipe"}]
    assert causes("renode", renode("Cora", 0.5, apart=0.11)) == [{"recipe"}], "runs of a split that end apart"
    assert verdicts("renode", renode("Cora", 0.5, apart=0.09)) == [Verdict.REPRODUCED]
    cut = renode("Cora", 0.5)
    for run in cut["rows"][0]["on"].values():
        run["curve"] = [[10, 0.4], [200, 0.51]]
    assert causes("renode", cut) == [{"budget", "recipe"}], "the last epoch ended those with the method, slow by then"
    cut["recipe"] = "constant"
    assert causes("renode", cut) == [set()], "by which 300 are allowed"
    unknown = renode("Cora", 0.5)
    for run in unknown["rows"][0]["off"].values():
        del run["curve"]
    assert causes("renode", unknown) == [{"budget"}], "nothing says that it has learned"


def test_renodes_runs_must_end_alike_in_most_rows():
    """One row in three may be restless, by the median."""
    content = renode("Cora", 0.5, apart=0.01)
    (restless,) = renode("Cora", 0.5, apart=0.3)["rows"]
    content["rows"] += [{**content["rows"][0], "model": "gat"}, {**restless, "model": "sage"}]
    assert causes("renode", content)[0] == set()
    content["rows"] += [{**restless, "model": model} for model in ("sgc", "cheb")]
    assert causes("renode", content)[0] == {"recipe"}


def test_renode_is_judged_by_the_backbones_of_the_paper_with_and_without_unequal_classes():
    content = renode("Cora", 0.5)
    (row,) = content["rows"]
    content["rows"] += [row | {"split": "step 5"}, row | {"split": "step 10"}]
    ours = {**renode("Cora", 0.5, gains=(-0.03, -0.031, -0.032))["rows"][0], "model": "appnp"}
    content["rows"].append(ours)
    balanced, step, *_ = claims_of("renode", [content])
    assert balanced.here == "Cora, balanced (with appnp: -1.00 [-1.00, -1.00], *not reproduced*)"
    assert step.here == "Cora, step, 2 rows"
    assert balanced.better == (6, 6) and step.better == (12, 12)


def test_one_choice_of_rows_in_all_that_is_said_of_renode():
    """Neither the floor nor the relation to Totoro is helped by a backbone that is ours."""
    rising = (0.01, 0.02, 0.03, 0.04, 0.05)
    content = renode("Photo", 0.85, gains=rising)
    content["rows"].append({**renode("Photo", 0.95, apart=0.3, gains=rising[::-1])["rows"][0], "model": "appnp"})
    judged, related = claims_of("renode", [content])
    assert [limit.text for limit in judged.limits if limit.decisive] == [
        "the baseline reaches 85.0 F1 on balanced labels: one that reaches 90 is needed"
    ]
    assert relation(content["rows"]).within[0] == 1.0 and related.paired is None


def test_the_released_recipe_gives_way_to_one_that_has_learned():
    rising = (0.01, 0.02, 0.03, 0.04, 0.05)
    released, constant = renode("Photo", 0.7, gains=rising), renode("Photo", 0.95, gains=rising)
    constant["recipe"] = "constant"
    gain, relation = claims_of("renode", [released, constant])
    said = " (as released: +3.00 [+1.04, +4.96], *not testable here*)"
    assert gain.here == f"Photo, constant rate, balanced{said}" and gain.verdict is Verdict.REPRODUCED
    assert relation.here == "Photo, constant rate"
    assert not relation.limits, "nothing is said to be left out"


def test_renode_at_scale_is_judged_by_the_exact_scores():
    def runs(level: float) -> dict[str, Any]:
        return {
            f"split{n}-init0": {"weighted_f1": level + n * level / 50, "curve": [[9, 0.3], [10, 0.3]]} for n in range(3)
        }

    rows = [{"system": name, "runs": runs(level)} for name, level in (("off", 0.5), ("exact", 0.52), ("push", 0.4))]
    content = {"dataset": "wordnet", "rows": rows, "options": "--dropout 0.5 --epochs 11 --patience 2"}
    assert verdicts("renode_large", content) == [Verdict.REPRODUCED]
    for run in rows[0]["runs"].values():
        run["curve"] = [[1, 0.2], [8, 0.3], [11, 0.31]]
    assert causes("renode_large", content) == [{"budget"}], "the last epoch ended them"


def test_the_splits_are_the_pairs_of_renodes_whole_grid():
    content = renode("Cora", 0.5, gains=(0.01, 0.02, 0.03))
    second = renode("Cora", 0.5, gains=(0.03, 0.02, -0.05))["rows"][0]
    content["rows"] += [{**second, "loss": "focal"}, {**second, "loss": "re-weight"}]  # balanced: ce once more
    (judged,) = claims_of("renode", [content])
    assert judged.paired == pytest.approx(Paired.of([2.0, 2.0, -1.0])) and judged.better == (10, 12)


def test_the_data_sets_are_the_pairs_of_totoros_claim():
    """Those in which the baseline has learned: a correlation of 1 in three of them."""
    rising = (0.01, 0.02, 0.03, 0.04, 0.05)
    contents = [renode(name, 0.7, gains=rising) for name in ("Cora", "CiteSeer", "Photo", "x")]
    *_, judged = claims_of("renode", contents)
    assert judged.paired and judged.paired[:4] == (1.0, 1.0, 1.0, 3) and judged.verdict is Verdict.REPRODUCED
    assert judged.here == "Cora, CiteSeer, x" and judged.limits[0].text.startswith("Photo, as released: left out")


def label_graph(svm: float, soft: float, on_states: float | None = None) -> dict[str, Any]:
    def runs(*scores: float) -> dict[str, Any]:
        return {f"seed{n}": {"micro_f1": score} for n, score in enumerate(scores)}

    scores = {"linear SVM, TF-IDF": (svm,), "attention network": (0.4, 0.41, 0.42)}
    scores |= {"+ label graph": (0.4,) * 3, "+ soft training": (soft, soft + 0.01, soft + 0.03)}
    if on_states:
        scores |= {"MiniLM": (0.4, 0.41, 0.42), "MiniLM + soft training": (on_states, on_states + 0.01, on_states)}
    return {"rows": [{"dataset": "d", "system": system, "runs": runs(*each)} for system, each in scores.items()]}


def test_the_label_graph_is_judged_where_networks_reach_a_linear_model():
    assert verdicts("label_graph", label_graph(svm=0.51, soft=0.5)) == [Verdict.REPRODUCED]
    assert causes("label_graph", label_graph(svm=0.52, soft=0.5)) == [{"recipe"}]
    words, states = claims_of("label_graph", [label_graph(svm=0.52, soft=0.5, on_states=0.6), {"ablation": "d"}])
    assert (words.verdict, states.verdict) == (Verdict.NOT_TESTABLE, Verdict.REPRODUCED)
    assert words.here == "d, both or neither" and states.here == "d on the states of MiniLM, both or neither"


def graphs(plain: float, bonus_epochs: int = 50) -> dict[str, Any]:
    def runs(gain: float) -> dict[str, Any]:
        each = {"best_epoch": 60, "epochs": 100, "bonus_epochs": bonus_epochs}
        return {f"repeat0-fold{n}": {"test_accuracy": plain + n * gain, **each} for n in range(10)}

    runs_of = {"cross-entropy": runs(0.0), "encouraging": runs(0.01)}
    return {"dataset": "NCI1", "protocol": "1 x 10 folds", "runs_of": runs_of}


def test_graphs_are_judged_at_the_published_level():
    (judged,) = claims_of("graph_classification", [graphs(0.69)])
    assert judged.verdict is Verdict.REPRODUCED and judged.better == (9, 10) and not judged.limits
    plain = Paired.of([100 * 0.01 * n for n in range(10)])
    assert judged.paired and judged.paired.low and plain.low and judged.paired.low < plain.low, "folds overlap"
    assert causes("graph_classification", graphs(0.68)) == [{"recipe"}]
    for allowed, expected in ((" --epochs 100", {"budget"}), (" --epochs 101", set()), ("", set())):
        content = graphs(0.69) | {"command": f"graph_classification{allowed}"}
        assert causes("graph_classification", content) == [expected], "trainings that the last epoch ended"
    (judged,) = claims_of("graph_classification", [graphs(0.69, bonus_epochs=40)])
    assert "10 of 10 models are of an epoch before the bonus starts" in judged.limits[0].text


def iais(last: float) -> dict[str, Any]:
    def runs(gain: float) -> dict[str, Any]:
        recalls = dict.fromkeys(("ir_r1", "ir_r5", "ir_r10", "tr_r1", "tr_r5"), 0.5)
        history = [{"step": 500, "rsum": 5.0}, {"step": 1000, "rsum": last}]
        return {f"seed{n}": {**recalls, "tr_r10": 0.5 + gain * (1 + n / 10), "history": history} for n in range(3)}

    rows = [{"system": "ranking loss alone", "runs": runs(0.0)}, {"system": "+ IAIS, singular", "runs": runs(0.1)}]
    return {"dataset": "coco_val2017_regions", "rows": rows}


def test_iais_is_judged_when_its_recall_is_flat():
    assert verdicts("iais", iais(5.05)) == [Verdict.REPRODUCED] and causes("iais", iais(5.06)) == [{"budget"}]


def test_isd_is_judged_by_its_correlation_with_recall():
    """Over the validations of the ranking loss, where the seeds are the pairs; and over all trained models."""
    content = iais(5.0)
    for row in content["rows"]:
        aligned = row["system"] != "ranking loss alone"
        for number, run in enumerate(row["runs"].values()):
            run |= {"isd": 9.0 - number - 5 * aligned, "tr_r10": 0.1 * number + 0.5 * aligned}
            run["history"] = [{"step": step, "isd": 1 / step, "rsum": 9 + step / 99} for step in range(1, 7)]
    exception = content["rows"][0]["runs"]["seed0"]["history"]
    exception[0]["rsum"], exception[1]["rsum"] = exception[1]["rsum"], exception[0]["rsum"]
    _, over_training, over_models = claims_of("iais", [content])
    assert over_training.verdict is Verdict.REPRODUCED and over_training.paired
    assert over_training.paired.mean == pytest.approx((1 - 6 * 2 / (6 * 35) + 1 + 1) / 3)
    assert over_models.verdict is Verdict.REPRODUCED and over_models.evidence().startswith("+1.00 [+0.9")
    assert "6 models" in over_models.evidence()
    for run in content["rows"][1]["runs"].values():  # less ISD by the loss, and less recall: no relation of the two
        run["tr_r10"] -= 5.0
    assert claims_of("iais", [content])[-1].paired == over_models.paired
    for row in content["rows"]:
        for run in row["runs"].values():
            run["history"][-1]["rsum"] = 20.0
    assert [claim.verdict for claim in claims_of("iais", [content])[1:]] == [Verdict.REPRODUCED, Verdict.NOT_TESTABLE]


def muka(behind: float = 0.0, last: float = 0.53, taught: float = 0.9, supervised: float = 0.9) -> dict[str, Any]:
    """Two teachers, of which the first has an accuracy of 0.95 on its own classes."""
    levels = dict.fromkeys(("vanilla KD", "UHC", "MUKI, hard", "MUKI, soft"), (0.5, 0.5, 0.5))
    levels |= {"ensemble of the teachers": (0.5 + behind,) * 3, "MUKA, hard": (0.53, 0.52, 0.53)}
    levels |= {"MUKA, soft": (0.53, 0.52, last), "supervised": (supervised,) * 3}
    rows = [
        {"system": system, "runs": {f"seed{n}": value for n, value in enumerate(each)}}
        for system, each in levels.items()
    ]
    diagnostics = [{"teacher_accuracy": [0.95, taught]}] * 3
    return {"setting": "stackoverflow20_4", "settings": {"epochs": 1}, "rows": rows, "diagnostics": diagnostics}


def test_muka_is_judged_where_a_student_learns_from_its_teachers():
    assert verdicts("muka", muka()) == [Verdict.REPRODUCED, Verdict.NOT_REPRODUCED]
    assert causes("muka", muka(behind=0.06))[0] == {"budget"}
    first, _ = claims_of("muka", [muka(last=0.4)])
    assert not [limit for limit in first.limits if limit.cause == "method"], "no baseline is better"
    better = muka()
    for row in better["rows"]:
        if row["system"] == "UHC":
            row["runs"] = dict.fromkeys(row["runs"], 0.7)
    said = [limit.text for limit in claims_of("muka", [better])[0].limits if limit.cause == "method"]
    assert said == ["on stackoverflow20_4 UHC has 70.0, it 52.7"], "the best of them"
    beaten = claims_of("muka", [better])[0]
    assert beaten.paired and beaten.paired.mean == pytest.approx(100 * (0.53 + 0.52 + 0.53) / 3 - 70)
    assert beaten.verdict is Verdict.NOT_REPRODUCED and beaten.here == "stackoverflow20_4 (over UHC)"
    assert any("which is against the method" in limit.text for limit in beaten.limits)
    settings = [
        content | {"setting": name} for content, name in ((muka(), "google_snippets"), (better, "ag_news_7600"))
    ]
    assert claims_of("muka", settings)[0].here == "google_snippets (over vanilla KD), ag_news_7600 (over UHC)"
    assert "MUKA, soft on stackoverflow20_4: seed2 ends at 40.0, the median at 52.0" in first.limits[0].text
    converged = muka()
    converged["settings"] = {"epochs": 1, "until_converged": 8}
    for row in converged["rows"]:
        row["converged"] = {"seed0": True, "seed1": True, "seed2": row["system"] != "MUKA, hard"}
    for contents in ([muka(last=0.4), converged], [converged, muka(last=0.4)]):
        first, _ = claims_of("muka", contents)
        assert first.verdict is Verdict.REPRODUCED and first.heading.endswith("until converged")
        assert "1 of 9 students had not converged after 8 epochs" in first.limits[0].text
    converged["rows"] = [row for row in converged["rows"] if row["system"] != "MUKI, hard"]
    assert claims_of("muka", [muka(), converged]) == claims_of("muka", [muka()]) and not claims_of("muka", [converged])


def test_muka_is_judged_where_each_teacher_has_learned_its_own_classes():
    """They are left out where others have, and are all there is where none has; the ensemble is no matter."""
    weak, good = muka(taught=0.84), muka() | {"setting": "heterogeneous"}
    assert causes("muka", weak) == [{"budget"}] * 2
    more, unequal, muki = claims_of("muka", [weak, good])
    assert (more.verdict, unequal.verdict) == (Verdict.NOT_TESTABLE, Verdict.REPRODUCED)
    assert muki.here == "heterogeneous" and "stackoverflow20_4 (6.0 behind), left out" in muki.limits[0].text
    assert causes("muka", muka(taught=0.851)) == causes("muka", muka(behind=-0.4)) == [set()] * 2
    (let_pass,) = (limit.text for limit in claims_of("muka", [muka(taught=0.86)])[0].limits if "let pass" in limit.text)
    assert "a teacher on stackoverflow20_4 is 4.0 points behind a supervised model, up to 5 being" in let_pass
    stray = muka()
    stray["diagnostics"] = [{"teacher_accuracy": [0.95, own]} for own in (0.79, 0.9, 0.91)]
    first, _ = claims_of("muka", [stray])
    assert first.verdict is Verdict.REPRODUCED
    assert any("teacher 2 on stackoverflow20_4 has 79.0 on its own" in limit.text for limit in first.limits)
    for lacking in ("diagnostics", "rows"):
        unknown = muka()
        unknown[lacking] = [row for row in unknown[lacking] if row.get("system", "") not in ("", "supervised")]
        assert causes("muka", unknown) == [{"budget"}] * 2, "nothing says whether they have learned"


def images(experiment: str, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    named = {name.replace("_", "-"): [{"steps": 1000, **run} for run in runs] for name, runs in rows.items()}
    listed = [{"system": name, "runs": {f"seed{n}": run for n, run in enumerate(runs)}} for name, runs in named.items()]
    return {"experiment": experiment, "rows": listed}


def attacked(accuracy: float, by_cross_entropy: float, by_log_odds: float) -> list[dict[str, Any]]:
    def run(shift: float) -> dict[str, Any]:
        accuracies = {"cross-entropy": {"0.2": by_cross_entropy + shift}, "log-odds": {"0.2": by_log_odds + shift}}
        return {"test_accuracy": accuracy, "fgsm": {"accuracy": accuracies}, "pgd": {"accuracy": accuracies}}

    return [run(0.0), run(0.01), run(0.02)]


def test_robustness_by_rounding_is_a_claim_of_its_own():
    content = images("attacks", cross_entropy=attacked(0.99, 0.3, 0.3), encouraging=attacked(0.99, 0.5, 0.3))
    first, artefact = claims_of("image_classification", [content])
    assert first.verdict is Verdict.REPRODUCED and artefact.verdict is Verdict.SPREAD
    assert any(
        "100 % of the gain above, which was measured here, is rounding" in limit.text for limit in artefact.limits
    )
    assert any("100 % of it is an artefact of the attack" in limit.text for limit in first.limits)
    assert "the mean of FGSM and PGD" in first.says
    trained = claims_of("image_classification", [content | {"experiment": "adversarial_training"}])
    assert [claim.published for claim in trained] == [6.0, 6.0] and [claim.ours for claim in trained] == [False, True]
    worse = images("attacks", cross_entropy=attacked(0.99, 0.3, 0.3), encouraging=attacked(0.99, 0.5, 0.2))
    (lost,) = (limit.text for limit in claims_of("image_classification", [worse])[1].limits if "rounding" in limit.text)
    assert lost.startswith("100 % of"), "no more is lost than there was"
    weak = images("attacks", cross_entropy=attacked(0.97, 0.3, 0.3), encouraging=attacked(0.97, 0.5, 0.3))
    assert causes("image_classification", weak) == [{"recipe"}] * 2


def test_attacks_are_taken_together():
    """The mean of both, of the runs that both attacked."""

    def run(fgsm: float, pgd: float | None) -> dict[str, Any]:
        def by_objective(accuracy: float | None) -> dict[str, Any]:
            radii = {} if accuracy is None else {"0.2": accuracy}
            return {"accuracy": {objective: radii for objective in ("cross-entropy", "log-odds")}}

        return {"test_accuracy": 0.99, "fgsm": by_objective(fgsm), "pgd": by_objective(pgd)}

    plain, bonus = [run(0.3, 0.1)] * 4, [run(0.5, 0.15), run(0.6, 0.25), run(0.7, 0.35), run(0.9, None)]
    first, _ = claims_of("image_classification", [images("attacks", cross_entropy=plain, encouraging=bonus)])
    assert first.paired == pytest.approx(Paired.of([12.5, 22.5, 32.5])), "(20 + 5) / 2 and so on"


@pytest.mark.parametrize(("reached", "expected"), [(0.981, Verdict.REPRODUCED), (0.979, Verdict.NOT_TESTABLE)])
def test_accuracy_is_judged_near_the_published_level(reached, expected):
    def runs(gain: float) -> list[dict[str, Any]]:
        return [{"test_accuracy": reached + gain * (1 + seed / 10)} for seed in range(3)]

    content = images("clean", cross_entropy=runs(0.0), encouraging=runs(0.001))
    assert verdicts("image_classification", content) == [expected]


@pytest.mark.parametrize(("many", "expected"), [(0.71, Verdict.NOT_REPRODUCED), (0.69, Verdict.NOT_TESTABLE)])
def test_tails_are_judged_where_the_head_is_learned(many, expected):
    def runs(*accuracies: float) -> list[dict[str, Any]]:
        return [{"test_accuracy": accuracy, "test_many": many} for accuracy in accuracies]

    content = tail("mnist_r100", {"cross-entropy": runs(0.5, 0.5, 0.5), "encouraging, LE 1": runs(0.4, 0.41, 0.42)})
    assert verdicts("image_classification", content) == [expected]


def tail(experiment: str, rows: dict[str, list[dict[str, Any]]], steps: int = 1000) -> dict[str, Any]:
    return images(experiment, **{name: [{"steps": steps, **run} for run in runs] for name, runs in rows.items()})


RATES = ("cross-entropy, half the rate", "encouraging, LE 1, half the rate")


def test_the_longest_training_of_a_tail_counts_and_a_short_one_is_no_test():
    runs = [{"test_accuracy": level, "test_many": 0.9} for level in (0.5, 0.51, 0.52)]
    rows = dict.fromkeys(("cross-entropy", "encouraging, LE 1", "aggressive", *RATES), runs)
    short = tail("mnist_r100", rows, steps=999)
    assert causes("image_classification", short) == [{"budget"}] * 3
    assert "999 steps, of both arms: 1,000 are needed" in claims_of("image_classification", [short])[0].limits[0].text
    late = tail("mnist_r100", rows | {"encouraging, LE 1": [{**run, "steps": 999} for run in runs]})
    assert {"budget"} in causes("image_classification", late), "of the method's arm, too"
    one = tail("mnist_r100", {name: [{**runs[0], "steps": 999}, *runs[1:]] for name in rows})
    assert causes("image_classification", one) == [{"budget"}] * 3, "of a single seed, too"
    long = tail("mnist_r100_long", {name: rows[name] for name in ("cross-entropy", "aggressive")})
    judged = claims_of("image_classification", [short, long])
    assert [(claim.says[:4], claim.here.count("four times")) for claim in judged] == [
        *(("LE 1", 0), ("LE 1", 0), ("aggr", 1)),
    ]
    single = tail("mnist_r100_long", {name: rows[name][:1] for name in ("cross-entropy", "aggressive")})
    judged = claims_of("image_classification", [short, single])
    assert ("aggr", 0) in {(claim.says[:4], claim.here.count("four times")) for claim in judged}, "one seed is no test"


def test_half_the_rate_is_compared_with_half_the_rate():
    def runs(level: float) -> list[dict[str, Any]]:
        return [{"test_accuracy": level + n / 100, "test_many": 0.9} for n in range(3)]

    rows = {"cross-entropy": runs(0.6), RATES[1]: runs(0.5)}
    assert not claims_of("image_classification", [tail("mnist_r100", rows)]), (
        "with nothing to compare there is no claim"
    )
    (judged,) = claims_of("image_classification", [tail("mnist_r100", rows | {RATES[0]: runs(0.45)})])
    assert judged.paired and judged.paired.mean == pytest.approx(5.0) and judged.here.endswith("half the rate")


def test_both_scores_of_other_images_are_claims():
    """As published, by a probability that is rounded, and by its log-odds."""

    def runs(rounded: float) -> list[dict[str, Any]]:
        scores = {"msp": {"auroc": 0.9}, "msp-float32": {"auroc": rounded}}
        return [{"test_accuracy": 0.99, "notMNIST": scores, "Omniglot": scores}] * 3

    published, ours = claims_of(
        "image_classification", [images("others", cross_entropy=runs(0.9), encouraging=runs(0.8))]
    )
    assert (published.verdict, ours.verdict) == (Verdict.NOT_REPRODUCED, Verdict.SPREAD)
    assert (published.ours, ours.ours) == (False, True)
    assert "ties of rounded probabilities make -10.0 points of it" in published.limits[0].text


def test_captions_are_judged_when_their_loss_is_flat():
    def runs(gain: float, last: float, distinct: int) -> dict[str, Any]:
        curves = {"nll_loss": [[80, 4.0], [100, last]]}
        scored = {"counts": {"images": 100, "distinct": distinct}, "curves": curves}
        return {f"seed{n}": {"cider_d": 0.8 + gain * (1 + n / 10), **scored} for n in range(3)}

    def content(last: float, distinct: int = 10) -> dict[str, Any]:
        rows = [
            {"system": "dense", "runs": runs(0.0, last, distinct)},
            {"system": "top-k 4", "runs": runs(0.1, last, 10)},
        ]
        return {"dataset": "coco_val2017_regions", "rows": rows}

    flat = content(3.99)
    assert verdicts("captioning", flat) == [Verdict.REPRODUCED] and causes("captioning", content(3.97)) == [{"budget"}]
    assert verdicts("captioning", content(3.99, distinct=9)) == [Verdict.NOT_TESTABLE]
    assert causes("captioning", content(3.99, distinct=9)) == [{"recipe"}]
    for score, cause in ((0.79, set()), (0.81, {"recipe"})):
        untrained = {"system": "nearest training image", "runs": {"": {"cider_d": score}}}
        assert causes("captioning", {**flat, "rows": [untrained, *flat["rows"]]}) == [cause]


def language(last: float) -> dict[str, Any]:
    rows = [
        {"system": system, "seed": seed, "bits": 7.0 + own, "curve": [[80, 7.0], [100, last]]}
        for system, own in (("dense", 0.0), ("top-k 8", 0.01), ("AdaNorm", 0.5))
        for seed in range(3)
    ]
    return {"name": "language_model_brown", "size": {"epochs": 8}, "rows": rows}


def test_language_models_are_judged_when_their_perplexity_is_flat():
    claims = claims_of("language_model", [language(6.99)])
    assert [claim.method for claim in claims] == ["Explicit Sparse Transformer", "AdaNorm"]
    assert [round(claim.paired.mean, 3) for claim in claims if claim.paired] == [-0.01, -0.5]
    assert causes("language_model", language(6.99)) == [set()] * 2
    assert causes("language_model", language(6.98)) == [{"budget"}] * 2
    method = language(6.99)
    for row in method["rows"]:
        if row["system"] == "AdaNorm":
            row["curve"] = [[80, 7.0], [100, 6.98]]
    assert causes("language_model", method) == [set(), {"budget"}], "the arm with the method has to be flat as well"
    assert [claim.margin for claim in claims] == [0.01, 0.01]
    assert ["adaptive span" in claim.says for claim in claims] == [True, False]
    asked = [any("adaptive span with them and without" in limit.text for limit in claim.limits) for claim in claims]
    assert asked == [True, False], "what is published is another pair than what is trained here"


def speeds(low: float, high: float, pairs: int = 9, busy: bool = False) -> dict[str, Any]:
    cases = {
        "decoding, MUSE-simple fused / Transformer, beam 5, batch 1": (1.02, low, high),
        "topk_softmax / sparsemax, decoding, (20, 1, 32)": (0.5, 0.4, 0.8),
        "topk_softmax / sparsemax, forward + backward, (64, 64, 64)": (0.5, 0.4, 0.8),
        "decoding, MUSE-simple fused / Transformer, beam 5, batch 64": (1.2, 1.1, 1.3),
    }
    rows = [{"case": case, "ratio": r, "low": a, "high": b, "pairs": pairs} for case, (r, a, b) in cases.items()]
    return {"rows": [*rows, {"case": next(iter(cases)), "ratio": 1.4, "pairs": 1}], "busy": busy}


def test_speed_is_judged_by_all_pairs():
    muse, sparse = claims_of("benchmarks", [speeds(0.95, 1.03)])
    assert muse.paired == pytest.approx((2.0, -5.0, 3.0, 9, 1.0, None)) and muse.verdict is Verdict.SPREAD
    assert muse.reasons()[0].text == "a gain as large as the published +31 is excluded"
    assert sparse.paired == pytest.approx((100.0, 25.0, 150.0, 9, 2 / 512, None)), "a ratio of times"
    assert sparse.verdict is Verdict.REPRODUCED and sparse.published == 100
    assert [c.verdict for c in claims_of("benchmarks", [speeds(1.01, 1.4)])] == [Verdict.REPRODUCED] * 2
    assert causes("benchmarks", speeds(1.01, 1.4, pairs=5)) == [{"budget"}] * 2, "too few for an interval"
    assert causes("benchmarks", speeds(1.01, 1.4, pairs=6)) == [set()] * 2, "just enough"
    assert any("busy" in limit.text for limit in claims_of("benchmarks", [speeds(1, 2, busy=True)])[0].limits)
