"""Ray's own autoscaler over nodes of this machine: nothing is there at first, what is needed comes, and goes again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)

from llama_bench.cluster import connect, driver
from llama_bench.cluster.autoscaler import node_types
from llama_bench.cluster.events import Event
from llama_bench.errors import InputError, WorkError
from llama_bench.store import Store
from llama_bench.sweep import Sweep, Target

from .test_job import free_port

HEAD_ID = f"{'f' * 51}00000"
SMALL = {"object_store_memory": 80 * 2**20, "memory": 4 * 2**30}
TYPES: dict[str, Any] = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "builder": {"resources": {"CPU": 1, "builder": 1, **SMALL}, "node_config": {}, "max_workers": 1},
    "bench_cpu": {"resources": {"CPU": 1, "bench_cpu": 1, **SMALL}, "node_config": {}, "max_workers": 2},
}
PARTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def configuration(port: int) -> dict[str, Any]:
    """Return what `ray up` would be given, for nodes that are processes of this machine."""
    provider = {
        "type": "external",
        "module": "simulated_provider.Provider",
        "gcs_address": f"127.0.0.1:{port}",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
        "use_node_id_as_ip": True,
    }
    lists = {f"{part}_commands": [] for part in PARTS} | {
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    return {
        **lists,
        **{"cluster_name": "here", "max_workers": 4, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1},
        **{"provider": provider, "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False},
        **{"head_node_type": "ray.head.default", "available_node_types": TYPES},
    }


@dataclass(frozen=True)
class Scaled:
    """A head whose autoscaler reads `file`."""

    file: Path

    def tags(self) -> set[str]:
        return {tag for node in connect.nodes() for tag in node.tags}


@pytest.fixture
def scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scaled]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    enable_token_auth_by_default()  # as `ray start` does where there is a token
    ensure_token_if_auth_enabled()
    port, file = free_port(), tmp_path / "cluster.json"
    file.write_text(json.dumps(configuration(port)))
    told = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_TMPDIR": f"/tmp/lb-as-{os.getpid()}"}
    told |= {"PYTHONPATH": str(Path(__file__).parent.parent / "simulated")}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false"]
    command += ["--object-store-memory=80000000", f"--autoscaling-config={file}"]
    with (
        (tmp_path / "head.log").open("wb") as log,
        subprocess.Popen(command, env={**os.environ, **told}, stdout=log, stderr=subprocess.STDOUT) as head,
    ):
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    connect.connect(f"127.0.0.1:{port}")
                    break
                except WorkError:
                    assert time.monotonic() < until, (tmp_path / "head.log").read_text()
                    time.sleep(1)
            yield Scaled(file)
        finally:
            ray.shutdown()
            head.terminate()


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_come_when_they_are_needed_and_go_when_they_are_not(
    scaled: Scaled, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["recipes"].pop("level0")
    store, seen = Store(tmp_path / "store"), list[tuple[str, str, set[str]]]()
    assert scaled.tags() == set()

    def watch(event: Event) -> None:
        seen.append((event.kind, event.detail if event.kind == "note" else event.state, scaled.tags()))

    result = driver.run(Sweep.model_validate(tiny), store, on_event=watch, autoscaler=scaled.file)
    assert (result.measured, result.failures, result.unserved) == (1, [], {})
    built = [tags for kind, state, tags in seen if kind == "build" and state == "finished"]
    assert all("builder" in tags for tags in built)
    assert all("bench_cpu" not in tags for tags in built)  # not before the cell's last artifact is there
    asked = next(i for i, (kind, what, _) in enumerate(seen) if what == "asked for 1 node with bench_cpu")
    assert all(kind != "build" for kind, _, _ in seen[asked:])
    until = time.monotonic() + 240
    while scaled.tags():
        assert time.monotonic() < until, connect.nodes()
        time.sleep(1)
    again = driver.run(Sweep.model_validate(tiny), store, autoscaler=scaled.file)  # nothing to do, so nothing comes
    assert (again.run, again.measured, again.reused) == (result.run, 0, 1)
    assert scaled.tags() == set()


def test_the_types_of_the_shipped_cluster_serve_its_targets_and_the_head_is_none_of_them() -> None:
    types = {one.name: one for one in node_types(Path(__file__).parents[2] / "cluster.yaml")}
    assert set(types) == {"builder", "bench_cpu", "bench_gpu"}
    gpu, cpu = Target(tag="bench_gpu", provider="CUDAExecutionProvider"), Target(tag="bench_cpu")
    assert [name for name, one in types.items() if one.serves(gpu)] == ["bench_gpu"]
    assert [name for name, one in types.items() if one.serves(cpu)] == ["bench_cpu"]
    assert [name for name, one in types.items() if one.builds] == ["builder"]
    assert all(one.most > 0 for one in types.values())


def test_without_a_file_nothing_can_be_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert node_types() == []
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "available_node_types: {a: {resources: {builder: 1}, max_workers: 3}}"
    )
    [one] = node_types()
    assert (one.name, one.most, one.builds) == ("a", 3, True)


@pytest.mark.parametrize("text", ["[1, 2]", "cluster_name: x", "a: [", "available_node_types: {a: 1}"])
def test_a_file_of_another_form_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"wrong\.yaml: not a file that `ray up` reads"):
        node_types(file)
    with pytest.raises(InputError, match="No such file"):
        node_types(tmp_path / "missing.yaml")
