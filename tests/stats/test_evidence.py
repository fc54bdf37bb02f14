from __future__ import annotations

from typing import Any

import pytest

from llama_bench.engines import onnxruntime as engine
from llama_bench.stats import evidence
from llama_bench.sweep import Session, Target

BASE = {
    "executed_sha256": "3f2a4b5c6d7e",
    "placement_sha256": "p",
    "settings_sha256": "s",
    "engine": "onnxruntime",
    "nodes_before": 207,
    "nodes_after": 207,
    "nodes_changed": 0,
    "histogram_difference": "{}",
}
CELL = {"id": "c1", "model": "h512", "workload": "prefill", "target": "B"}
FAILURE: dict[str, Any] = dict.fromkeys(["cell", "model", "workload", "target", "recipe", "stage", "artifact", "kind"])


def failure(**filled: Any) -> dict[str, Any]:
    return {**FAILURE, "kind": "WorkError", "message": "too large", **filled}


def accuracy(**changed: Any) -> dict[str, Any]:
    row = {"restart": 0, "output": "logits", "max_rel": 2e-5, "nonfinite": 0, "bound": 1e-3, "within_bound": True}
    return row | changed


def test_a_pass_that_changes_nothing_is_a_no_op_with_its_proof() -> None:
    sentence = evidence.no_op(BASE, BASE, "original")
    assert sentence == "changed 0 nodes; executed graph 3f2a4b5c… and settings equal original's"


def test_removing_what_onnx_runtime_removes_itself_is_a_no_op_with_its_proof() -> None:
    arm = {**BASE, "nodes_after": 203, "nodes_changed": 4, "histogram_difference": '{"Identity": -4}'}
    sentence = evidence.no_op(arm, BASE, "original")
    assert sentence is not None
    assert sentence.startswith(
        "removes 4 nodes (4 Identity) that ONNX Runtime removes itself: executed graph 3f2a4b5c…"
    )
    assert "equals original's" in sentence


def test_a_change_that_is_undone_is_a_no_op_and_counts_what_it_changed() -> None:
    arm = {**BASE, "nodes_changed": 7, "histogram_difference": '{"Gemm": 2, "MatMul": -2}'}
    sentence = evidence.no_op(arm, BASE, "original")
    assert sentence is not None
    assert sentence.startswith("changes 7 nodes")


@pytest.mark.parametrize("key", ["executed_sha256", "placement_sha256", "settings_sha256", "engine"])
@pytest.mark.parametrize("value", ["other", None])
def test_any_difference_or_gap_in_what_is_executed_is_no_no_op(key: str, value: str | None) -> None:
    assert evidence.no_op({**BASE, key: value}, BASE, "original") is None


def test_what_was_not_examined_is_no_no_op() -> None:
    unknown = {**BASE, "executed_sha256": None}
    assert evidence.no_op(unknown, unknown, "original") is None
    assert evidence.no_op(None, BASE, "original") is None
    assert evidence.no_op(BASE, None, "original") is None


def test_an_engine_that_executes_no_graph_is_never_a_no_op_not_even_beside_itself() -> None:
    torch = BASE | {"engine": "torch-eager", "executed_sha256": None, "placement_sha256": None}
    assert evidence.no_op(torch, torch, "original") is None
    assert evidence.no_op(torch, BASE, "original") is None


def test_one_answer_outside_its_bound_is_wrong_and_the_worst_is_named() -> None:
    rows = [
        accuracy(),
        accuracy(restart=1, max_rel=0.02, within_bound=False),
        accuracy(restart=2, max_rel=0.5, within_bound=False, output="present.0.key"),
    ]
    sentence = evidence.wrong(rows)
    assert sentence is not None
    assert "present.0.key" in sentence
    assert "0.5 (bound 0.001), in 2 restarts" in sentence
    assert "accuracy bound against torch in fp32: " in sentence
    assert "accuracy bound against the file itself: " in str(evidence.wrong(rows, "the file itself"))
    assert evidence.wrong(rows[:1]) is None
    assert evidence.wrong([accuracy(within_bound=None)]) is None


def test_the_check_itself_says_what_an_answer_violates() -> None:
    said = "KL divergence 0.4 nats is above 0.1; top-1 agreement 0.5 is below 0.9"
    sentence = evidence.wrong([accuracy(max_rel=0.02, bound=None, within_bound=False, violated=said)])
    assert sentence == f"output logits is outside its accuracy bound against torch in fp32: {said}, in 1 restart"


def text(**changed: Any) -> dict[str, Any]:
    said = "perplexity increase 0.4 is above 0.1"
    return accuracy(output="text", max_rel=None, bound=None, within_bound=False, violated=said) | changed


def test_of_several_wrong_answers_the_one_on_text_is_told_and_none_that_was_not_judged() -> None:
    rows = [accuracy(max_rel=0.9, within_bound=False), text(), accuracy(output="present.0.key", within_bound=None)]
    sentence = evidence.wrong(rows)
    assert sentence == (
        "its predictions on text are outside their bounds against torch in fp32: perplexity increase 0.4 is above 0.1"
    )
    spoiled = accuracy(restart=2, max_rel=float("inf"), nonfinite=3, within_bound=False)
    assert "3 values that are not finite" in str(evidence.wrong([*rows, spoiled]))
    assert evidence.wrong([text(within_bound=True, violated=None), rows[2]]) is None


def test_a_generated_token_that_is_not_torchs_is_told() -> None:
    said = "1 of 8 tokens are not torch's, the first at position 7 of sequence 0"
    rows = [accuracy(output="tokens", max_rel=None, within_bound=False, violated=said, restart=n) for n in (0, 1)]
    assert evidence.wrong(rows) == (
        f"output tokens is outside its accuracy bound against torch in fp32: {said}, in 2 restarts"
    )


def test_values_that_are_not_finite_are_worse_than_any_difference() -> None:
    rows = [
        accuracy(max_rel=0.9, within_bound=False),
        accuracy(max_rel=float("nan"), nonfinite=12, within_bound=False, output="hidden_states"),
    ]
    sentence = evidence.wrong(rows)
    assert sentence is not None
    assert "hidden_states" in sentence
    assert "12 values that are not finite" in sentence


@pytest.mark.parametrize(
    "found",
    [
        failure(cell="c1", recipe="fuse"),
        failure(cell="c1"),
        failure(model="h512", workload="prefill", recipe="fuse"),
        failure(model="h512", workload="prefill"),
        failure(artifact="v1"),
    ],
)
def test_a_failure_of_the_arm_or_of_what_it_needs_makes_it_failed(found: dict[str, Any]) -> None:
    verdict = evidence.without_number(CELL, "fuse", "v1", [{**found, "stage": "build"}], None)
    assert verdict == ("failed", "build: too large")


def test_the_arms_own_failure_explains_more_than_its_cells() -> None:
    rows = [failure(recipe="fuse", cell="c1", message="own"), failure(cell="c1", message="the node went away")]
    assert evidence.without_number(CELL, "fuse", None, rows, None) == ("failed", "own")
    assert evidence.without_number(CELL, "other", None, rows, None) == ("failed", "the node went away")


@pytest.mark.parametrize(
    "found",
    [failure(), failure(cell="c2"), failure(model="h512", recipe="other"), failure(artifact="v2"), failure(target="A")],
)
def test_a_failure_elsewhere_leaves_the_arm_skipped(found: dict[str, Any]) -> None:
    word, reason = evidence.without_number(CELL, "fuse", "v1", [found], None)
    assert word == "skipped"
    assert reason


def test_an_arm_whose_engine_is_not_installed_is_skipped_with_the_reason() -> None:
    missing = failure(cell="c1", recipe="fuse", stage="engine", kind="skipped", message="openvino is not installed")
    later = failure(cell="c1", message="the node went away")
    assert evidence.without_number(CELL, "fuse", "v1", [missing, later], None) == (
        "skipped",
        "openvino is not installed",
    )
    assert died([missing | {"restart": 5}], restarts=8, needed=20) is None


def test_a_target_without_a_node_is_unserved_whatever_else_failed() -> None:
    found = evidence.without_number(CELL, "fuse", "v1", [failure(cell="c1")], "no node offers bench_gpu")
    assert found == ("unserved", "no node offers bench_gpu")


def died(rows: list[dict[str, Any]], **changed: int) -> str | None:
    numbers = {"restarts": 3, "last": 4, "needed": 6, "others": 6} | changed
    return evidence.died(CELL, "fuse", rows, **numbers)


def gave_up(**changed: Any) -> dict[str, Any]:
    return failure(**{"cell": "c1", "recipe": "fuse", "stage": "slot", "restart": 5, "message": "killed"} | changed)


def test_an_arm_that_was_given_up_half_way_says_after_how_many_restarts_and_why() -> None:
    assert died([gave_up()]) == "given up after 3 restarts: slot: killed"
    assert died([gave_up()], restarts=1) == "given up after 1 restart: slot: killed"
    # after the pilot, but before the restarts that its own spread asks for
    assert died([gave_up()], restarts=8, needed=20) == "given up after 8 restarts: slot: killed"


def test_an_arm_that_was_tried_again_since_its_failure_is_alive() -> None:
    assert died([gave_up(restart=3)], restarts=6) is None
    assert died([gave_up(restart=3)], restarts=8, needed=20) is None


@pytest.mark.parametrize("changed", [{"kind": "lost"}, {"recipe": "x"}, {"cell": "c2"}, {"stage": "build"}])
def test_a_lost_restart_or_a_failure_elsewhere_gives_no_arm_up(changed: dict[str, Any]) -> None:
    assert died([gave_up(**changed)], restarts=8, needed=20) is None


def test_an_arm_that_has_all_it_needs_did_not_die_half_way() -> None:
    assert died([gave_up()], restarts=6) is None


def test_fewer_restarts_than_the_arms_beside_it_need_no_failure_to_be_seen() -> None:
    assert died([]) == "timed in 3 restarts only, other arms beside it in 6"
    assert died([], others=3) is None
    assert died([], others=0) is None


def machine(**changed: Any) -> dict[str, Any]:
    return {"hostname": "host-a", "cpu": "AMD EPYC", "physical_cores": 8, "gpu": None} | changed


@pytest.mark.parametrize(
    "other", [{"hostname": "host-b"}, {"cpu": "Intel Xeon"}, {"physical_cores": 4}, {"hostname": "host-b", "gpu": "H"}]
)
def test_restarts_on_two_machines_name_both(other: dict[str, Any]) -> None:
    sentence = evidence.two_machines([machine(), machine(**other)])
    assert sentence is not None
    assert "host-a (AMD EPYC, 8 cores)" in sentence
    assert " and " in sentence
    assert str(next(iter(other.values()))) in sentence


def test_one_machine_or_what_was_not_seen_is_no_second_machine() -> None:
    assert evidence.two_machines([]) is None
    assert evidence.two_machines([machine()]) is None
    assert evidence.two_machines([machine(), machine(cpu=None, gpu="NVIDIA H200")]) is None
    assert evidence.two_machines([machine(gpu="H100"), machine(gpu="H200")]) is not None


def test_unserved_targets_have_their_reason_as_text() -> None:
    run = {"unserved": {"A": "no node", "C": {"offers": ["bench_cpu"]}}}
    assert evidence.unserved_targets(run) == {"A": "no node", "C": '{"offers": ["bench_cpu"]}'}
    assert evidence.unserved_targets({"unserved": ["A"]}) == {"A": "no node serves it"}
    assert evidence.unserved_targets({}) == {}


@pytest.mark.parametrize(
    ("session", "threads"),
    [
        (Session(), 3),
        (Session(tf32=False), 2),
        (Session(cuda_graph=True), 2),
        (Session(io="host"), 2),
        (Session(optimization_level="disable"), 2),
        (Session(slowdown=0.03), 2),
        (Session(config={"session.use_env_allocators": "1"}), 2),
        (Session(provider_options={"prefer_nhwc": True}), 2),
    ],
)
def test_the_same_graph_under_other_threads_or_session_options_is_never_a_no_op(session: Session, threads: int) -> None:
    """The settings as the coordinator makes them, hashed as the examination does."""
    target = Target(tag="bench_gpu", provider="CUDAExecutionProvider")
    same = {"executed_sha256": "a" * 64, "placement_sha256": "b" * 64, "engine": "onnxruntime", "nodes_changed": 0}

    def row(idea: Session, threads: int) -> dict[str, Any]:
        settings = {**engine.settings("onnxruntime", idea, target, threads), "slowdown": idea.slowdown}
        return {**same, "settings_sha256": engine.settings_sha256(settings)}

    baseline = row(Session(), 2)
    assert evidence.no_op(row(session, threads), baseline, "original") is None
    assert evidence.no_op(row(Session(), 2), baseline, "original") is not None
