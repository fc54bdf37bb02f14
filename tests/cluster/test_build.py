"""Building artifacts as a plain function."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from llama_bench.cluster.build import build
from llama_bench.cluster.build_task import OUT_OF_MEMORY, cpus, fault
from llama_bench.cluster.building import closure, is_large, memory_bytes
from llama_bench.cluster.connect import Node
from llama_bench.errors import StoreError, WorkError
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Sweep


def test_a_pass_that_changes_nothing_shares_the_graph_and_costs_a_small_file(sweep: Sweep, store: Store) -> None:
    plan = make(sweep, {})
    export, _, step = plan.artifacts.values()
    first = build(export, store)
    before = store.size("")
    second = build(step, store)
    assert second["effect"]["changed"] is False
    assert second["graph_sha256"] == first["graph_sha256"]
    assert second["weights"] == first["weights"]
    assert store.size("") - before < 60_000


def test_an_export_that_fails_leaves_no_artifact(tiny: dict[str, Any], store: Store) -> None:
    tiny["models"][0] |= {"exporter": "dynamo", "opset": 14}
    plan = make(Sweep.model_validate(tiny), {})
    export = next(iter(plan.artifacts.values()))
    with pytest.raises(WorkError, match="opset"):
        build(export, store)
    assert not store.has(export.id)


def test_the_closure_of_a_variant_holds_its_parents_first(sweep: Sweep) -> None:
    plan = make(sweep, {})
    variant = next(arm.variant for arm in plan.cells[0].arms if arm.name == "eliminate_identity")
    assert [artifact.kind for artifact in closure(plan, [variant]).values()] == ["export", "pass"]
    assert list(closure(plan, [plan.cells[0].reference])) == [plan.cells[0].reference]


def test_building_a_larger_model_asks_ray_for_more_memory(tiny: dict[str, Any]) -> None:
    small = make(Sweep.model_validate(tiny), {})
    tiny["models"][0] |= {"hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 11008}
    large = make(Sweep.model_validate(tiny), {})
    [a, *_], [b, *_] = small.artifacts.values(), large.artifacts.values()
    assert memory_bytes(large, b) > memory_bytes(small, a) + 10**9


def test_training_takes_all_cpus_of_the_largest_node_that_has_its_memory(tiny: dict[str, Any]) -> None:
    tiny["recipes"]["taught"] = {"passes": [{"prune": {"name": "channels", "keep": 0.5}}, {"distill": {"steps": 1}}]}
    tiny["models"][0] |= {"head": "lm"}
    tiny["workloads"]["prefill"] |= {"outputs": "logits"}
    plan = make(Sweep.model_validate(tiny), {})
    training = next(a for a in plan.artifacts.values() if a.spec.get("family") == "distill")
    pruning = next(a for a in plan.artifacts.values() if a.spec.get("family") == "prune")
    nodes = [
        Node(str(cores), "", {"builder": 1.0, "CPU": float(cores), "memory": memory})
        for cores, memory in ((4, 8e9), (16, 32e9), (64, 1e9))
    ]
    assert cpus(training, 2 * 10**9, nodes) == 16
    assert cpus(pruning, 2 * 10**9, nodes) == 1
    assert cpus(pruning, 2 * 10**9, nodes, large=True) == 16


def test_a_model_of_gigabytes_is_large_in_every_build_of_it(tiny: dict[str, Any]) -> None:
    small = make(Sweep.model_validate(tiny), {})
    assert not any(is_large(small, artifact) for artifact in small.artifacts.values())
    tiny["models"][0] |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8, "vocab_size": 32000}
    large = make(Sweep.model_validate(tiny), {})
    assert all(is_large(large, artifact) for artifact in large.artifacts.values())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_too_little_memory_is_known_by_its_words_also_behind_ours(error: Exception, sweep: Sweep) -> None:
    artifact = next(iter(make(sweep, {}).artifacts.values()))
    dressed = WorkError("the exporter failed")
    dressed.__cause__ = error
    for one in (error, dressed):
        found = fault(artifact, one)
        assert (found.kind, found.passing) == (OUT_OF_MEMORY, True)
        assert found.message == f"{artifact.label}: not enough memory"


def test_what_another_node_or_moment_may_have_is_passing_and_a_model_that_cannot_be_exported_is_not(
    sweep: Sweep,
) -> None:
    artifact = next(iter(make(sweep, {}).artifacts.values()))
    for error in (StoreError("gone"), OSError(errno.ENOSPC, "full"), ImportError("no module")):
        assert fault(artifact, raised(error)).passing
    for error in (WorkError("opset 14"), ValueError("a shape"), OSError(errno.ENOENT, "no file")):
        assert not fault(artifact, raised(error)).passing


def raised(error: Exception) -> Exception:
    """Return the error with a place where it was raised."""
    try:
        raise error
    except Exception as caught:
        return caught
