"""What is said of a row is true, for every verdict; the numbers are computed again from the raw slots."""

from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from llama_bench.report import explanation
from llama_bench.stats.explained import Explained, explain, matching, names
from llama_bench.stats.judged import judge_run


def of(world: Any, recipe: str, **wanted: str) -> Explained:
    """The facts about the one row of `world` that is meant."""
    datasets = world.datasets()
    judged = judge_run(world.run, datasets)
    [name] = matching(names(judged), {"recipe": recipe, **wanted})
    return explain(judged, datasets, name)


def said(found: Explained, heading: str | None = None) -> str:
    """All sentences, or those under a heading, as one text."""
    parts = [part for part in explanation.sections(found) if heading in (None, part.heading)]
    return "\n".join(sentence for part in parts for sentence in part.sentences)


def y_of(world: Any, recipe: str) -> np.ndarray:
    """One y a restart from the raw slots, without any code of the package."""
    rows = pl.DataFrame([row for row in world.rows["blocks"] if row["phase"] == "main" and row["kept"]])
    arm = rows.filter(pl.col("recipe") == recipe, ~pl.col("control"))
    base = rows.filter(pl.col("recipe") == "original", ~pl.col("control"))
    both = arm.join(base, on=["restart", "block"], suffix="_base")
    y = both.with_columns(y=pl.col("log_seconds") - pl.col("log_seconds_base"))
    return y.group_by("restart").agg(pl.col("y").mean()).sort("restart")["y"].to_numpy()


@pytest.fixture(scope="module")
def world(synthetic: ModuleType) -> Any:
    """One cell with an arm of every verdict that ratios and answers give."""
    Truth = synthetic.Truth
    return synthetic.world(
        {
            "fast": Truth(0.8, executed="aa" * 32, changed=5),
            "slow": Truth(1.25, executed="ab" * 32, changed=2),
            "same": Truth(1.001, executed="ac" * 32, changed=1),
            "idle": Truth(removed={"Identity": 4}),
            "bad": Truth(0.7, executed="ad" * 32, within_bound=False, kind="approximate", perplexity_increase=0.3),
            "broken": Truth(failure="no kernel for Foo"),
            "absent": Truth(skipped="openvino is not installed", engine="openvino"),
        },
        spread=0.003,
        confirm="fast",
        text=True,
    )


@pytest.fixture(scope="module")
def noisy(synthetic: ModuleType) -> Any:
    """A cell whose one recipe is a little faster than its noise lets one say."""
    return synthetic.world({"maybe": synthetic.Truth(0.98, executed="aa" * 32)}, spread=0.03, half_width=0.01, seed=4)


def shifted(world: Any, by: float) -> Any:
    """Let the control take longer by a share, in all that was timed."""
    for row in world.rows["blocks"]:
        row["log_seconds"] += by * row["control"]
    for row in world.rows["timings"]:
        row["seconds"] *= float(np.exp(by * row["control"]))
    return world


@pytest.mark.parametrize(("recipe", "word", "than"), [("fast", "faster", "less"), ("slow", "slower", "more")])
def test_faster_and_slower_give_the_numbers_of_their_test(world: Any, recipe: str, word: str, than: str) -> None:
    found = of(world, recipe)
    why = said(found, "Why this verdict")
    assert (found.name.verdict, found.decision.rule) == (word, "discovery")
    y = y_of(world, recipe)
    error = y.std(ddof=1) / np.sqrt(len(y)) * found.decision.aa.inflation
    assert f"is {y.mean():+.4f}".replace("-", "−") in why
    assert f"= {error:.4f}; so t = {y.mean() / error:+.2f}".replace("-", "−") in why
    p = 2 * stats.t.sf(abs(y.mean() / error), len(y) - 1)
    assert ("p < 1e-6" if p < 1e-6 else f"p = {p:.2g}") in why
    took = np.exp(y.mean()) - 1
    assert f"It took {abs(took):.1%} {than} time than original".replace("%", " %") in why
    assert "so it is called different" in why
    width = abs(y.mean()) / error / stats.t.ppf(0.5 + found.decision.tested.level / 2, len(y) - 1)
    assert f"if it were {width:.1f} times as wide" in said(found, "What would change it")


def test_the_family_is_ranked_by_p_and_leaves_control_and_no_ops_out(world: Any) -> None:
    found = of(world, "same")
    members = found.decision.family
    assert {one.recipe for one in members} == {"fast", "slow", "same", "bad"}
    assert [one.p for one in members] == sorted(one.p for one in members)
    assert [one.allowed for one in members] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert [one.rejected for one in members] == [True, True, True, False]
    assert "number 4 of the 4 arms" in said(found)
    assert "here 3. Rank 4 may have 0.05, so it is not called different." in said(found)
    assert f"{1 - 3 * 0.05 / 4:.1%}".replace("%", " %") in said(found)
    [family] = [table for part in explanation.sections(found) for table in part.tables if "family" in table.title]
    assert [row[1] for row in family.rows][-1] == "same ←"


def test_equivalent_shows_the_interval_that_lies_inside_the_margin(world: Any) -> None:
    found = of(world, "same")
    assert (found.name.verdict, found.decision.rule) == ("equivalent", "margin")
    y = y_of(world, "same")
    half = stats.t.ppf(0.95, 5) * y.std(ddof=1) / np.sqrt(6) * found.decision.aa.inflation
    low, high = np.exp(-y.mean() - half), np.exp(-y.mean() + half)
    assert f"Its 90 % interval [{low:.3f}, {high:.3f}] lies inside ±2 %" in said(found)


def test_inconclusive_says_what_would_have_been_seen_and_how_many_restarts_it_takes(noisy: Any) -> None:
    found = of(noisy, "maybe")
    assert (found.name.verdict, found.decision.rule) == ("inconclusive", "neither")
    text, more = said(found), found.decision.more
    assert "reaches beyond ±2 %" in text
    assert f"chance of 80 %: {found.decision.tested.smallest_effect * 100:.1f} %" in text
    y = y_of(noisy, "maybe")
    t = stats.t.ppf(0.975, 5)
    wanted = int(np.ceil((t * y.std(ddof=1) / 0.01) ** 2))
    assert more.to_wanted == wanted
    assert f"takes {wanted} restarts (Stein's second stage), {wanted - 6} more than there are" in text
    needed = int(np.ceil((t * y.std(ddof=1) * found.decision.aa.inflation / y.mean()) ** 2))
    assert more.to_differ == needed
    assert f"it would be called different from {needed} restarts on" in text


def test_as_many_restarts_as_are_named_do_change_the_verdict(noisy: Any) -> None:
    found = of(noisy, "maybe").decision
    one = found.tested
    for n, differs in ((found.more.to_differ, True), (found.more.to_differ - 1, False)):
        half = stats.t.ppf(0.975, one.df) * one.sd * one.inflation / np.sqrt(n)
        assert bool(half <= abs(one.mean)) is differs


def test_a_no_op_says_what_proves_it_and_that_its_ratio_is_noise(world: Any) -> None:
    found = of(world, "idle")
    text = said(found)
    assert (found.name.verdict, found.decision.rule) == ("no-op", "no-op")
    assert "removes 4 nodes (4 Identity) that ONNX Runtime removes itself" in text
    assert "one more look at the noise" in text
    assert "called different" not in text
    assert all(found.change.same.values())
    assert "What would change it" not in [part.heading for part in explanation.sections(found)]


def test_the_control_is_noise_and_the_baseline_has_no_interval(world: Any) -> None:
    control, base = of(world, "control"), of(world, "original")
    assert (control.decision.rule, base.decision.rule) == ("control", "baseline")
    assert "is original a second time" in said(control)
    assert "its own speedup is 1 by definition" in said(base)
    assert (base.decision.tested, base.restarts, base.order) == (None, (), None)
    headings = [part.heading for part in explanation.sections(base)]
    assert "Restarts and blocks" not in headings
    assert "Order and drift" not in headings
    assert "Single runs" in headings


def test_a_wrong_arm_shows_its_bound_and_its_ratio_in_brackets(world: Any) -> None:
    found = of(world, "bad")
    text = said(found)
    assert (found.name.verdict, found.decision.rule) == ("wrong", "wrong")
    assert "outside their bounds" in text
    assert "Outside its bounds: perplexity increase 0.3 is above 0.1." in text
    assert "More restarts make no wrong answer right." in text
    assert re.search(r"wrong \(1\.4\d\d× \[", explanation.title(found))


@pytest.mark.parametrize(
    ("recipe", "verdict", "told", "advice"),
    [
        ("broken", "failed", "build: no kernel for Foo", "--retry-failed"),
        ("absent", "skipped", "openvino is not installed", "The same `run` command goes on"),
    ],
)
def test_what_has_no_number_has_its_reason_and_what_to_do(
    world: Any, recipe: str, verdict: str, told: str, advice: str
) -> None:
    found = of(world, recipe)
    assert (found.name.verdict, found.decision.rule, found.decision.tested) == (verdict, "no number", None)
    assert told in said(found)
    assert advice in said(found)
    assert "×" not in said(found, "Why this verdict")
    headings = [part.heading for part in explanation.sections(found)]
    assert not {"Restarts and blocks", "Order and drift", "Clocks and the machine", "Single runs"} & set(headings)


def test_a_target_that_nothing_serves_is_said(synthetic: ModuleType) -> None:
    targets = {"B": "CPUExecutionProvider", "C": "CUDAExecutionProvider"}
    made = synthetic.world({"fast": synthetic.Truth(0.8)}, targets=targets, unserved={"C": "no GPU here"})
    found = of(made, "fast", target="C")
    assert (found.name.verdict, found.decision.rule) == ("unserved", "no number")
    assert "No node of the run serves its target, so nothing was timed: no GPU here." in said(found)


def test_equal_programs_that_differ_void_the_arm_and_show_no_number_of_it(synthetic: ModuleType) -> None:
    made = shifted(synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)}, spread=0.003), 0.1)
    found = of(made, "fast")
    assert (found.name.verdict, found.decision.rule, found.decision.tested) == ("void", "A/A", None)
    assert "differ by more than chance" in said(found)
    assert "×" not in said(found)
    assert "e to the minus" not in said(found)
    assert explanation.title(found).endswith(": void")
    control = of(made, "control")
    assert (control.name.verdict, control.decision.rule) == ("control", "control")
    assert "differ here by more than chance" in said(control)
    assert f"It took {np.expm1(0.1):.1%}"[:10] in said(control)
    [table] = [table for part in explanation.sections(found)[:1] for table in part.tables]
    assert table.rows[0][0] == "control"
    assert table.rows[0][1].startswith("0.9")
    assert not [part for part in explanation.sections(found) if part.heading == "Restarts and blocks"]


def test_a_cell_on_two_machines_is_void_and_its_ratios_are_not_shown(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)})
    made.move(3, hostname="other", cpu="Another CPU")
    found = of(made, "fast")
    assert (found.name.verdict, found.decision.rule) == ("void", "machines")
    assert "a ratio never crosses machines" in said(found)
    assert "×" not in said(found)


def test_an_arm_with_one_restart_is_inconclusive_without_a_test(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)}, restarts=1, pilot=2, half_width=None)
    for row in made.rows["pieces"]:
        row["restart"] = row.get("restart")
    found = of(made, "fast")
    assert (found.name.verdict, found.decision.rule, found.decision.tested) == ("inconclusive", "no interval", None)
    assert "no ratio that a test could be made of: one restart only" in said(found)


def test_the_fastest_has_its_fresh_restarts(world: Any) -> None:
    found = of(world, "fast")
    assert found.decision.headline is not None
    assert "timed again on 6 fresh restarts" in said(found)
    assert "It is confirmed." in said(found)
    [table] = next(part for part in explanation.sections(found) if part.heading == "Restarts and blocks").tables
    assert [row[0] for row in table.rows] == ["0 – 5", "fresh 6 – 11"]
    shown = [float(number.strip("×")) for number in table.rows[0][1].split()]
    assert shown == pytest.approx(np.exp(-y_of(world, "fast")), abs=0.0005)
    assert of(world, "slow").decision.headline is None


def test_disturbed_blocks_are_counted_with_what_disturbed_them(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)})
    made.disturb(2, 0, "fast", kept=False)
    made.disturb(2, 1, "fast", kept=True)
    text = said(of(made, "fast"), "Restarts and blocks")
    assert "It is compared with its baseline in 24 blocks of 6 restarts." in text
    assert "1 block more was disturbed, left out for all arms, and timed again." in text
    assert "1 of the blocks that count was disturbed too" in text
    assert "What disturbed them: steal 12 %." in text


def test_an_outlier_is_named_and_counts(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)}, spread=0.003)
    for row in made.rows["blocks"]:
        row["log_seconds"] += 0.2 * (row["restart"] == 4 and row["recipe"] == "fast")
    found = of(made, "fast")
    y = y_of(made, "fast")
    assert found.outlier.restart == 4
    assert "Restart 4 is an outlier" in said(found)
    assert f"without it the speedup would be {np.exp(-np.delete(y, 4).mean()):.3f}×" in said(found)
    assert found.decision.tested.mean == pytest.approx(y.mean())
    tables = [table for part in explanation.sections(found) for table in part.tables if table.columns[0] == "Restarts"]
    assert tables[0].rows[0][1].count("*") == 1


def test_planted_effects_of_order_and_time_are_said_and_absent_ones_are_not(synthetic: ModuleType) -> None:
    still = said(of(synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)}), "fast"), "Order and drift")
    assert "The position in the block cannot be told to matter" in still
    assert "shows no drift that could be told" in still
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)})
    for row in made.rows["blocks"]:
        row["log_seconds"] += 0.05 * (row["position"] == 0) + 0.03 * row["block"] * (row["recipe"] == "fast")
    found = of(made, "fast")
    moved = said(found, "Order and drift")
    assert "The position in the block matters here" in moved
    assert "Over the blocks of a restart its time against the baseline's drifts by +" in moved
    assert found.drift.ratio_by_block.low < 0.03 + 0.05 < found.drift.ratio_by_block.high + 0.05


def test_a_clock_that_the_ratio_follows_is_named_and_what_was_not_measured_is_said(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)})
    quiet = said(of(made, "fast"), "Clocks and the machine")
    assert "Not measured here: GPU clock (of blocks and restarts)" in quiet
    for row in made.rows["blocks"]:
        slow = row["block"] % 2
        row |= {"sm_mhz": 1500.0 - 300 * slow + row["restart"], "throttle": "power cap" if slow else ""}
        row["log_seconds"] += 0.05 * slow * (row["recipe"] == "fast")
    found = of(made, "fast")
    text = said(found, "Clocks and the machine")
    assert "GPU clock and the ratio went together over 24 blocks" in text
    assert "the higher it was, the less long the arm took" in text
    assert "reasons for not clocking higher: power cap (12 blocks)" in text
    [clock] = [one for one in found.seen if (one.what, one.of) == ("sm_mhz", "block")]
    assert (clock.low, clock.high, clock.values) == (1200.0, 1505.0, 24)
    assert clock.rho == pytest.approx(stats.spearmanr(*_clock_and_y(made)).statistic)
    assert "GPU clock (of restarts)" in text


def _clock_and_y(made: Any) -> tuple[list[float], list[float]]:
    base = {(r["restart"], r["block"]): r["log_seconds"] for r in made.rows["blocks"] if r["recipe"] == "original"}
    mine = [row for row in made.rows["blocks"] if row["recipe"] == "fast"]
    return [row["sm_mhz"] for row in mine], [row["log_seconds"] - base[row["restart"], row["block"]] for row in mine]


def test_a_first_run_that_takes_longer_is_seen(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)})
    for row in made.rows["timings"]:
        row["seconds"] *= 1.1 if row["run_index"] == 0 and row["recipe"] == "fast" else 1.0
    for row in made.rows["machines"]:
        row |= {"warmup_runs": 5 + row["restart"], "steady": row["restart"] > 0}
    found = of(made, "fast")
    assert found.times.first.mean == pytest.approx(np.log(1.1), abs=0.003)
    assert abs(found.baseline_times.first.mean) < 0.003
    text = said(found, "Single runs")
    assert "so they differ" in text
    assert "Warm-up took 7.5 runs (median; from 5 to 10); in 5 of 6 restarts" in text


def test_settings_and_operators_that_differ_are_listed(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32, removed={"Identity": 2})})
    for row in made.rows["variants"]:
        fast = row["recipe"] == "fast"
        options = {"io": "host" if fast else "device", "provider_options": {"use_tf32": "1"} if fast else {}}
        row |= {"settings": json.dumps(options), "settings_sha256": "ee" * 32 if fast else "cd" * 32}
        row["executed_histogram"] = json.dumps({"MatMul": 3 if fast else 5, "Add": 1})
        row["passes"] = json.dumps(["fuse: all"] if fast else [])
    part = next(part for part in explanation.sections(of(made, "fast")) if part.heading == "Graph")
    ops, settings = part.tables
    assert ops.rows == (("Identity", "−2", "–"), ("MatMul", "–", "−2"))
    assert settings.rows == (("io", "device", "host"), ("provider_options.use_tf32", "–", "1"))
    assert "equal original's: placement, engine; differ: executed graph, settings" in "\n".join(part.sentences)


def test_an_engine_without_a_graph_has_no_operators_to_compare(synthetic: ModuleType) -> None:
    made = synthetic.world({"torch": synthetic.Truth(0.8, engine="torch-compile")})
    for row in made.rows["variants"]:
        row["executed_histogram"] = None if row["recipe"] == "torch" else json.dumps({"MatMul": 5})
        row |= {"placement": None if row["recipe"] == "torch" else json.dumps({"CPU": {"MatMul": 5}})}
    part = next(part for part in explanation.sections(of(made, "torch")) if part.heading == "Graph")
    assert part.tables == ()
    assert "executes no graph that could be saved, so nothing proves it a no-op" in part.sentences[1]
    assert "differ: engine; not known: executed graph, placement" in part.sentences[2]


def test_the_speed_of_light_is_that_of_the_view(synthetic: ModuleType) -> None:
    made = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa" * 32)})
    assert "no ceilings were measured in this run" in said(of(made, "fast"), "Speed of light")
    for row in made.rows["variants"]:
        row["settings"] = "{}"
    for row in made.rows["machines"]:
        row["hardware"] = "h"
    one = {"node": "n", "hardware": "h", "target": "B", "threads": 2, "how": "numpy"}
    made.rows["ceilings"] += [{**one, "what": "matmul", "dtype": "fp32", "per_second": 5e12}]
    made.rows["ceilings"] += [{**one, "what": "read", "dtype": None, "per_second": 1e10}]
    found = of(made, "fast")
    assert found.bound is not None
    text = said(found, "Speed of light")
    assert f"It reaches {found.bound.share * 100:.1f} % of that speed." in text
    assert f"The arm took {found.time_s * 1000:#.4g} ms" in text


def test_json_and_markdown_say_the_same_and_json_has_no_infinity(world: Any) -> None:
    found = of(world, "idle")
    told = explanation.as_json(found)
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text)["facts"]["decision"]["word"] == "no-op"
    page = explanation.as_markdown(found)
    assert page.startswith("# idle · target B")
    for part in told["sections"]:
        assert f"## {part['heading']}" in page
    assert page.count("\n* ") >= sum(len(part["sentences"]) for part in told["sections"])


def test_every_sentence_of_every_row_ends_and_holds_no_none(world: Any, noisy: Any) -> None:
    for made in (world, noisy):
        datasets = made.datasets()
        judged = judge_run(made.run, datasets)
        for name in names(judged):
            for part in explanation.sections(explain(judged, datasets, name)):
                assert part.sentences
                for sentence in part.sentences:
                    assert sentence[-1] in ".:…", sentence
                    assert sentence[0].isupper() or sentence.startswith(name.recipe) or sentence[0].isdigit(), sentence
                    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|  ", sentence), sentence


def test_where_the_time_goes_on_the_gpu_is_told_of_an_arm_whose_kernels_were_seen(synthetic: ModuleType) -> None:
    recipes = {"fused": synthetic.Truth(0.5, executed="aa"), "unseen": synthetic.Truth(0.5, executed="bb")}
    made = synthetic.world(recipes, targets={"A": "CUDAExecutionProvider"}, spread=1e-6)
    heading = "Where the time goes on the GPU"
    assert said(of(made, "fused"), heading) == ""
    made.profile(
        {"fused": [("gemm", "matmul", 9, 6e-4), ("flash_fwd", "attention", 2, 1e-4), ("D2H", "copy", 1, 1e-4)]}
    )
    found = of(made, "fused")
    first, second, third = said(found, heading).splitlines()
    assert first.startswith("The 11 kernels of a run, and its copies, are busy for 0.8000 ms; a timed run takes ")
    assert second == "Nodes of its graph that run on the CPU: 2; that copy between the two: 1."
    assert third.startswith("The floor of all classes together is 0.")
    [part] = [part for part in explanation.sections(found) if part.heading == heading]
    classes, longest = part.tables
    assert [row[0] for row in classes.rows] == ["matrix products", "attention", "copies", "no kernel ran"]
    assert [row[0] for row in longest.rows] == ["gemm", "flash_fwd", "D2H"]
    assert json.loads(json.dumps(explanation.as_json(found)))["facts"]["gpu"]["launches"] == 11
    assert said(of(made, "unseen"), heading) == ""
