"""Tags, nodes and targets, without Ray."""

from __future__ import annotations

import socket

import pytest

from llama_bench.cluster import connect
from llama_bench.cluster.connect import Node
from llama_bench.errors import WorkError
from llama_bench.sweep import Target

CPU = Target(tag="bench_cpu")
GPU = Target(tag="bench_gpu", provider="CUDAExecutionProvider")


def test_a_machine_without_a_gpu_builds_and_serves_cpu_targets() -> None:
    assert connect.local_tags(4, 0) == {"builder": 4.0, "bench_cpu": 1.0}


def test_a_machine_with_a_gpu_serves_gpu_targets_too() -> None:
    assert connect.local_tags(4, 2)["bench_gpu"] == 1.0


def test_a_target_that_no_node_serves_is_named_with_what_the_nodes_offer() -> None:
    node = Node("1", "10.0.0.1", {"CPU": 4.0, "builder": 4.0, "bench_cpu": 1.0, "memory": 1e9})
    [(name, why)] = connect.unserved({"A": GPU, "B": CPU}, [node]).items()
    assert name == "A"
    assert "bench_gpu with a GPU" in why
    assert "10.0.0.1: bench_cpu, builder" in why


def test_why_the_nodes_have_no_gpu_is_told_where_it_is_one_reason() -> None:
    node = Node("1", "10.0.0.1", {"CPU": 4.0, "bench_cpu": 1.0})
    tags = {"A": GPU, "C": Target(tag="bench_moon")}
    found = connect.unserved(tags, [node], ["no driver", None, "no driver"])
    assert found["A"].endswith("(the nodes offer 10.0.0.1: bench_cpu); no driver")
    assert "no driver" not in found["C"]
    assert "no driver" not in connect.unserved(tags, [node], ["no driver", "not loaded"])["A"]


def test_a_tag_alone_is_no_gpu() -> None:
    assert not Node("1", "a", {"bench_gpu": 1.0}).serves(GPU)
    assert Node("1", "a", {"bench_gpu": 1.0, "GPU": 1.0}).serves(GPU)


def test_a_cluster_without_nodes_serves_nothing_and_says_so() -> None:
    assert "no nodes" in connect.unserved({"B": CPU}, [])["B"]


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WorkError, match=f"no Ray cluster at '127.0.0.1:{port}'"):
        connect.connect(f"127.0.0.1:{port}")
