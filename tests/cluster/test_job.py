"""`ray job submit` from a checkout to a real head with token authentication, as the README says it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RAY = Path(sys.executable).with_name("ray")

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
name: tiny
models:
  defaults: {num_hidden_layers: 1, intermediate_size: 24, vocab_size: 32, head: none, exporter: torchscript, opset: 17}
  sizes: [{hidden_size: 16, num_attention_heads: 2}]
recipes: {original: {}}
workloads: {prefill: {batch: 1, sequence: 8, outputs: hidden}, longer: {batch: 1, sequence: 16, outputs: hidden}}
targets: {cpu: {tag: bench_cpu, threads: 1}}
measure: {restarts: RESTARTS, blocks: 2, runs: 3, half_width: null, confirm: false}
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """A head on this machine, and a checkout to submit from."""

    environment: Mapping[str, str]
    checkout: Path

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(RAY), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=dict(self.environment), cwd=self.checkout, timeout=280
        )

    def submit(self, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        words = ("--working-dir", ".", *options, "--", sys.executable, "-m", "llama_bench", *command)
        deadline = time.monotonic() + 200
        while True:  # a head lists jobs before it takes any: "please try again later", says Ray
            done = self.ray("job", "submit", *words)
            if "No available agent to submit job" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Start a head that builds and measures; it is stopped by its processes, so that no other Ray here is touched."""
    checkout = tmp_path_factory.mktemp("job") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in listed.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for restarts, name in ((2, "tiny"), (500, "endless")):
        (checkout / f"{name}.yaml").write_text(SWEEP.replace("RESTARTS", str(restarts)))
    dashboard, port = free_port(), free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")},
        "RAY_AUTH_MODE": "token",
        "HOME": str(checkout.parent),  # where the token lies
        "RAY_TMPDIR": f"/tmp/lb-{os.getpid()}",
    }
    subprocess.run([str(RAY), "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    start = ["start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    start += ["--resources", '{"builder": 2, "bench_cpu": 1}', "--object-store-memory=100000000"]
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    with subprocess.Popen(
        [str(RAY), *start], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as up:
        try:
            found = Head(environment, checkout)
            deadline = time.monotonic() + 120
            while found.ray("job", "list").returncode != 0:
                assert time.monotonic() < deadline, found.ray("job", "list").stderr
                time.sleep(1)
            yield found
        finally:
            up.terminate()
    shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def status(head: Head, store: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "llama_bench", "status", str(store), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=head.checkout)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A sweep that was submitted and ran to its end: what the command said, and its store."""
    store = tmp_path_factory.mktemp("submitted") / "store"
    return head.submit("run", "tiny.yaml", "--store", str(store), "--no-report"), store


def test_a_submitted_sweep_runs_to_its_end_and_its_log_reads_without_a_terminal(
    head: Head, submitted: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    done, store = submitted
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 measured, 0 reused" in done.stdout
    assert "\x1b[2K" not in done.stdout  # nothing that redraws a line
    assert status(head, store)["finished"]


def test_failed_work_and_wrong_input_end_the_job_as_failed_with_their_line(head: Head, tmp_path: Path) -> None:
    done = head.submit("run", "sweeps/repord.yaml", "--store", str(tmp_path))
    assert done.returncode == 1
    assert "repord.yaml" in done.stdout
    assert "exit code 2" in done.stdout


def test_a_relative_store_is_refused_in_a_job(head: Head) -> None:
    done = head.submit("run", "tiny.yaml")
    assert done.returncode == 1
    assert "temporary copy of the checkout" in done.stdout


def test_a_stopped_job_leaves_what_is_finished_and_the_same_command_goes_on(
    head: Head, submitted: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for part in ("artifacts", "weights"):  # the sweeps differ in their restarts alone
        shutil.copytree(submitted[1] / part, store / part)
    options = ("--no-wait", "--submission-id", "endless")
    assert head.submit("run", "endless.yaml", "--store", str(store), options=options).returncode == 0
    deadline = time.monotonic() + 200
    while not list(store.glob("tiny/*/pieces/*-r0001.parquet")):
        assert time.monotonic() < deadline, head.ray("job", "logs", "endless").stdout
        time.sleep(1)
    found = status(head, store)
    assert len(found["drivers"]) == 1  # type: ignore[arg-type]
    assert not found["finished"]
    assert head.ray("job", "stop", "endless").returncode == 0
    before = {path: path.stat().st_mtime for path in store.glob("tiny/*/pieces/*.parquet")}
    assert len(before) >= 2
    time.sleep(2)
    after = {path: path.stat().st_mtime for path in store.glob("tiny/*/pieces/*.parquet")}
    assert after == before  # nothing goes on in secret
    assert not list(store.rglob("*#*"))  # nothing half written
    (run,) = (path.name for path in (store / "tiny").iterdir())
    head.submit("run", "endless.yaml", "--store", str(store), options=("--no-wait", "--submission-id", "again"))
    deadline = time.monotonic() + 200
    while len(list(store.glob("tiny/*/pieces/*-r*.parquet"))) <= len([p for p in before if "-r" in p.name]):
        assert time.monotonic() < deadline, head.ray("job", "logs", "again").stdout
        time.sleep(1)
    assert head.ray("job", "stop", "again").returncode == 0
    assert [path.name for path in (store / "tiny").iterdir()] == [run]


def test_what_is_uploaded_of_a_checkout_is_far_below_rays_limit(head: Head) -> None:
    size = sum(path.stat().st_size for path in head.checkout.rglob("*") if path.is_file())
    assert size < 50 * 2**20
