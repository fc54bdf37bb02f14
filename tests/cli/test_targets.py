"""`targets`, on a Ray of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = """
name: two
models: {sizes: [{hidden_size: 16, num_attention_heads: 2, vocab_size: 64}]}
recipes: {original: {}}
workloads: {prefill: {sequence: 8}}
targets: {here: {tag: bench_cpu}, nowhere: {tag: bench_moon}}
"""


@pytest.mark.ray
def test_this_machine_serves_cpu_targets_and_builds_and_a_target_without_a_node_is_named(tmp_path: Path) -> None:
    sweep = tmp_path / "two.yaml"
    sweep.write_text(SWEEP)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "llama_bench", "targets", str(sweep), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    [node] = json.loads(done.stdout)
    assert node["serves"] == ["here"]
    assert node["builds"]
    assert node["tags"]["bench_cpu"] == 1
    assert "target nowhere" in done.stderr
    assert "bench_moon" in done.stderr
