from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from llama_bench.stats.ratios import Estimate, restart_ratios
from llama_bench.stats.verdicts import Comparison, benjamini_hochberg, equivalent, fcr_level, judge

P_1995 = [
    0.0001,
    0.0004,
    0.0019,
    0.0095,
    0.0201,
    0.0278,
    0.0298,
    0.0344,
    0.0459,
    0.3240,
    0.4262,
    0.5719,
    0.6528,
    0.7590,
    1.0,
]
"""The fifteen p-values of Benjamini & Hochberg (1995), section 3.2: four are rejected at 5 %."""


def judged(**arms: Comparison) -> dict[str, str]:
    return {name: verdict.word for name, verdict in judge(arms, pilot=6, margin=0.02).items()}


def around(centre: float, spread: float = 0.002) -> tuple[float, ...]:
    return tuple(centre + spread * step for step in (-1.5, -1, -0.3, 0.3, 1, 1.5))


def test_the_example_of_the_1995_paper_rejects_four() -> None:
    assert benjamini_hochberg(P_1995).tolist() == [True] * 4 + [False] * 11
    assert benjamini_hochberg(P_1995[::-1]).tolist() == [False] * 11 + [True] * 4


def test_a_step_up_rejects_what_lies_below_the_last_one_under_the_line() -> None:
    # 0.04 is above 1/2 · 5 %, but 0.045 is below 2/2 · 5 %
    assert benjamini_hochberg([0.04, 0.045]).tolist() == [True, True]
    assert benjamini_hochberg([]).tolist() == []


def test_the_level_of_the_printed_intervals_follows_the_rejections() -> None:
    assert fcr_level(0, 4) == pytest.approx(1 - 0.05 / 4)
    assert fcr_level(1, 4) == pytest.approx(1 - 0.05 / 4)
    assert fcr_level(3, 4) == pytest.approx(1 - 3 * 0.05 / 4)
    assert fcr_level(4, 4) == pytest.approx(0.95)


def test_printed_intervals_exclude_one_exactly_when_the_verdict_is_faster_or_slower() -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(300):
        arms = {f"a{i}": Comparison(tuple(rng.normal(rng.choice([0, 0.01]), 0.01, 6))) for i in range(4)}
        for verdict in judge(arms, pilot=6, margin=0.02).values():
            assert verdict.interval is not None
            excludes = verdict.interval[0] > 1 or verdict.interval[1] < 1
            assert excludes == (verdict.word in ("faster", "slower"))
            seen.add(verdict.word)
    assert seen == {"faster", "slower", "equivalent", "inconclusive"}


def test_each_verdict_comes_from_its_numbers() -> None:
    words = judged(
        quick=Comparison(around(-0.1)),
        lame=Comparison(around(0.1)),
        same=Comparison(around(0.0)),
        noisy=Comparison(around(0.0, 0.05)),
        idle=Comparison(around(0.0), no_op="changed 0 nodes"),
        false=Comparison(around(-0.5), wrong="output logits is outside"),
        control=Comparison(around(0.0), control=True),
        gone=Comparison((), problem=("failed", "export: too large")),
    )
    assert words == {
        "quick": "faster",
        "lame": "slower",
        "same": "equivalent",
        "noisy": "inconclusive",
        "idle": "no-op",
        "false": "wrong",
        "control": "control",
        "gone": "failed",
    }


def test_an_inconclusive_arm_says_what_could_have_been_seen() -> None:
    verdict = judge({"noisy": Comparison(around(0.0, 0.05))}, pilot=6, margin=0.02)["noisy"]
    assert verdict.smallest_effect is not None
    assert verdict.smallest_effect > 0.05
    assert f"{verdict.smallest_effect:.1%}" in verdict.evidence


def test_the_margin_decides_what_is_equivalent() -> None:
    found = Estimate(0.0, 0.0147, 5, 6)  # 90 % interval ±1.2 %
    assert equivalent(found, 0.02)
    assert not equivalent(found, 0.01)


def test_no_ops_and_control_are_no_part_of_the_family() -> None:
    arm = Comparison(around(-0.004, 0.003))  # p ≈ 0.04
    alone = judge({"a": arm}, pilot=6, margin=0.001)["a"]
    idle = {f"n{i}": Comparison(around(0.0), no_op="changed 0 nodes") for i in range(5)}
    beside = judge({"a": arm, **idle, "control": Comparison(around(0.0), control=True)}, pilot=6, margin=0.001)["a"]
    assert alone == beside
    assert alone.word == "faster"
    crowded = judge({"a": arm, **{f"b{i}": Comparison(around(0.0)) for i in range(5)}}, pilot=6, margin=0.001)["a"]
    assert crowded.word == "inconclusive"


@pytest.mark.parametrize(
    ("y", "word", "reason"),
    [
        ((), "inconclusive", "no restart"),
        ((-0.5,), "inconclusive", "one restart"),
        ((-0.5,) * 6, "inconclusive", "exactly the same"),
        ((-0.5, -0.4, float("nan"), -0.5, -0.5, -0.5), "failed", "1 of 6"),
        ((-0.5, float("-inf"), float("inf"), -0.5, -0.5, -0.5), "failed", "2 of 6"),
        ((-0.5,) * 6 + (-0.4,), "inconclusive", "exactly the same"),
    ],
)
def test_ratios_that_allow_no_interval_get_a_named_verdict_and_no_number(
    y: tuple[float, ...], word: str, reason: str
) -> None:
    verdict = judge({"a": Comparison(y)}, pilot=6, margin=0.02)["a"]
    assert verdict.word == word
    assert reason in verdict.evidence
    assert (verdict.speedup, verdict.interval, verdict.level) == (None, None, None)


def test_a_no_op_is_known_without_a_ratio() -> None:
    verdict = judge({"a": Comparison((0.1,), no_op="changed 0 nodes")}, pilot=6, margin=0.02)["a"]
    assert verdict.word == "no-op"
    assert verdict.speedup is None
    assert "one restart" in verdict.evidence


def test_inflation_makes_verdicts_more_careful_and_keeps_the_speedup() -> None:
    arms = {"a": Comparison(around(-0.01)), "idle": Comparison(around(0.0), no_op="changed 0 nodes")}
    plain, wide = (judge(arms, pilot=6, margin=0.001, inflation=factor) for factor in (1.0, 10.0))
    assert (plain["a"].word, wide["a"].word) == ("faster", "inconclusive")
    assert wide["a"].speedup == plain["a"].speedup
    for name in arms:
        (low, high), (wide_low, wide_high) = plain[name].interval or (0, 0), wide[name].interval or (0, 0)
        assert np.log(wide_high / wide_low) == pytest.approx(10 * np.log(high / low))
    assert judge({"a": Comparison(around(0.0))}, pilot=6, margin=0.02, inflation=20.0)["a"].word == "inconclusive"


def test_a_void_target_leaves_nothing_that_hangs_on_a_ratio() -> None:
    arms = {
        "quick": Comparison(around(-0.1)),
        "lame": Comparison(around(0.1)),
        "same": Comparison(around(0.0)),
        "noisy": Comparison(around(0.0, 0.05)),
        "once": Comparison((0.1,)),
        "idle": Comparison(around(0.0), no_op="changed 0 nodes"),
        "false": Comparison(around(-0.5), wrong="output logits is outside"),
        "control": Comparison(around(0.0), control=True),
        "gone": Comparison((), problem=("failed", "export: too large")),
    }
    verdicts = judge(arms, pilot=6, margin=0.02, void="χ² = 45.2 with 7 degrees of freedom")
    assert {name: verdict.word for name, verdict in verdicts.items()} == {
        **dict.fromkeys(("quick", "lame", "same", "noisy", "once"), "void"),
        "idle": "no-op", "false": "wrong", "control": "control", "gone": "failed",
    }  # fmt: skip
    for name in ("quick", "lame", "same", "noisy", "once"):
        found = verdicts[name]
        assert found.evidence == "χ² = 45.2 with 7 degrees of freedom"
        assert (found.speedup, found.interval, found.level, found.smallest_effect) == (None, None, None, None)


def test_a_void_cell_knows_its_wrong_answers_and_nothing_else() -> None:
    problem = ("void", "two machines")
    arms = {
        "a": Comparison(around(-0.1), problem=problem),
        "idle": Comparison(around(0.0), no_op="changed 0 nodes", problem=problem),
        "false": Comparison(around(-0.5), wrong="output logits is outside", problem=problem),
    }
    verdicts = judge(arms, pilot=6, margin=0.02)
    assert {name: verdict.word for name, verdict in verdicts.items()} == {"a": "void", "idle": "void", "false": "wrong"}
    assert all(verdict.speedup is None and verdict.interval is None for verdict in verdicts.values())


def test_identical_programs_are_called_different_in_one_cell_of_twenty() -> None:
    cells, restarts, n_blocks, arms = 2000, 6, 4, 2
    rng = np.random.default_rng(11)
    shape = (cells, restarts, n_blocks, arms)
    level = rng.normal(0, 0.01, (cells, restarts, 1, arms))
    drift = rng.normal(0, 0.05, (cells, restarts, n_blocks, 1))
    values = level + drift + rng.normal(0, 0.003, shape)
    index = np.indices(shape).reshape(4, -1)
    rows = pl.LazyFrame(
        {
            "cell": index[0],
            "restart": index[1],
            "group": np.zeros(index.shape[1], dtype=int),
            "block": index[2],
            "recipe": np.where(index[3] == 0, "original", "twin"),
            "control": np.zeros(index.shape[1], dtype=bool),
            "log_seconds": values.ravel(),
        }
    ).with_columns(pl.col("cell").cast(pl.String))
    found = restart_ratios(rows, {str(cell): "original" for cell in range(cells)})
    per_cell = found.group_by("cell").agg("y")["y"].to_list()
    words = [judge({"twin": Comparison(tuple(y))}, pilot=6, margin=0.02)["twin"].word for y in per_cell]
    assert len(words) == cells
    alarms = sum(word in ("faster", "slower") for word in words) / cells
    assert 0.036 < alarms < 0.064
