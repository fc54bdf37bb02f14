"""Which run goes on."""

from __future__ import annotations

from dataclasses import replace

from llama_bench import results
from llama_bench.cluster.identity import Identity, changes, find_or_start
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Sweep


def identity(sweep: Sweep) -> Identity:
    return Identity(sweep.model_dump(mode="json"), "code", {"onnxruntime": "1.31.1", "numpy": "2.4"}, ["node"])


def test_the_same_identity_goes_on_with_the_same_run(sweep: Sweep, store: Store) -> None:
    plan = make(sweep, {})
    first = find_or_start(store, plan, identity(sweep), {}, {})
    again = find_or_start(store, plan, identity(sweep), {}, {})
    assert again.run == first.run
    assert again.why == "going on"
    assert results.runs(store, "tiny") == [first.run.partition("/")[2]]


def test_another_version_starts_a_new_run_and_says_what_changed(sweep: Sweep, store: Store) -> None:
    plan, before = make(sweep, {}), identity(sweep)
    first = find_or_start(store, plan, before, {}, {})
    after = replace(before, versions={"onnxruntime": "1.32.0"}, code="other", hardware=["another"])
    second = find_or_start(store, plan, after, {}, {})
    assert second.run != first.run
    for words in ("measuring code changed", "onnxruntime 1.31.1 → 1.32.0", "numpy 2.4 → absent", "machines"):
        assert words in second.why


def test_a_changed_key_of_the_sweep_is_named(sweep: Sweep) -> None:
    before = {"sweep": {"recipes": 1, "measure": 2}, "code": "", "versions": {}, "hardware": []}
    assert changes(before, {**before, "sweep": {"recipes": 1, "measure": 3}}) == ["the sweep's measure changed"]


def test_run_json_says_what_the_cells_are(sweep: Sweep, store: Store) -> None:
    plan = make(sweep, {})
    found = find_or_start(store, plan, identity(sweep), {"A": "no node"}, {"n": {"hostname": "h"}})
    info = results.read_run(store, found.run)
    assert info["cells"][0]["arms"] == ["original", "eliminate_identity", "level0", "control"]
    assert info["artifacts"] == list(plan.artifacts)
    assert info["unserved"] == {"A": "no node"}
    assert info["machines"] == [{"hostname": "h"}]
