"""An arm's process, called directly: no Ray."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_bench import engines
from llama_bench.bench.accuracy import Bounds
from llama_bench.cluster.arm import Arm
from llama_bench.cluster.build import build
from llama_bench.engines import Task, TimedSession
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Session, Sweep

BOUNDS = Bounds(max_rel=1e-3, min_cosine=None, max_kl=None, min_top1=None)


def loaded(sweep: Sweep, store: Store, run: bool = False, **settings: Any) -> tuple[Arm, Path, dict[str, Any]]:
    """Build the sweep's first arm and load it; return it, the folder of its reference, and what it said."""
    plan = make(sweep, {})
    [cell] = plan.cells
    for name in (cell.reference, cell.arms[0].variant):
        if not store.has(name):
            build(plan.artifacts[name], store)
    reference, arm = store.fetch(cell.reference), Arm()
    task = Task(cell.model.model_dump(), cell.workload.model_dump(), load_file(reference / "inputs.safetensors"))
    said = engines.settings("onnxruntime", Session(), cell.target, 1) | settings
    return arm, reference, arm.load(store.fetch(cell.arms[0].variant), said, task, run)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for the tests of this module that only look at what was built: some of it takes seconds."""
    return Store(tmp_path_factory.mktemp("kept") / "store")


@pytest.fixture
def generating(tiny: dict[str, Any]) -> Sweep:
    """A sweep of a model with a cache and a head that generates text."""
    tiny["models"][0] |= {"cache": True, "head": "lm", "exporter": "dynamo", "opset": 18}
    tiny["workloads"] = {"generate": {"kind": "generate", "batch": 2, "prompt": 5, "new_tokens": 4}}
    tiny["measure"] |= {"text": {"tokens": 14, "window": 8}}
    return Sweep.model_validate(tiny)


def test_an_arm_loads_warms_up_checks_and_times(sweep: Sweep, store: Store) -> None:
    arm, reference, said = loaded(sweep, store)
    assert arm.identify()["pid"] == os.getpid()
    assert said == {"providers": ["CPUExecutionProvider"], "threads": 1}
    assert arm.warm_up()["runs"] >= 3
    checks = arm.check(reference / "reference.safetensors", BOUNDS, "exact")
    assert {row["output"] for row in checks} == {"hidden_states", "present.0.key", "present.0.value"}
    assert all(row["within_bound"] for row in checks)
    slot = arm.slot(4)
    assert len(slot["seconds"]) == 4
    assert min(slot["seconds"]) > 0
    assert arm.generated() == []


def test_an_arm_that_runs_once_as_it_loads_has_an_answer_before_it_is_warm(sweep: Sweep, store: Store) -> None:
    arm, reference, _ = loaded(sweep, store, run=True)
    assert all(row["within_bound"] for row in arm.check(reference / "reference.safetensors", BOUNDS, "exact"))


def test_hidden_states_predict_nothing_that_could_be_scored(sweep: Sweep, store: Store) -> None:
    arm, reference, _ = loaded(sweep, store)
    assert arm.text(reference, BOUNDS, "exact") is None


def test_an_arm_that_generates_gives_its_tokens_and_what_each_took(generating: Sweep, kept: Store) -> None:
    arm, reference, _ = loaded(generating, kept)
    arm.warm_up()
    slot = arm.slot(15)
    assert [len(tokens) for tokens in slot["token_s"]] == [4] * 15
    shares = [sum(tokens) / run for tokens, run in zip(slot["token_s"], slot["seconds"], strict=True)]
    assert max(shares) <= 1
    assert statistics.median(shares) > 0.5  # of one run the core may be taken away between the two clocks
    expected = load_file(reference / "reference.safetensors")["tokens"]
    assert arm.generated() == expected.tolist()


def test_the_timed_session_answers_for_its_perplexity(generating: Sweep, kept: Store) -> None:
    arm, reference, _ = loaded(generating, kept)
    arm.warm_up()
    row = arm.text(reference, BOUNDS, "exact")
    assert row is not None
    assert (row["output"], row["tokens"], row["window"]) == ("text", 14, 8)
    assert row["perplexity"] == pytest.approx(row["reference_perplexity"], rel=1e-4)
    assert (row["top1"], row["within_bound"]) == (1.0, True)


def test_an_arm_says_how_much_memory_it_has_had(sweep: Sweep, store: Store) -> None:
    arm, _, _ = loaded(sweep, store)
    arm.warm_up()
    memory = arm.memory()
    assert memory["peak_bytes"] > 50_000_000  # Python, numpy and ONNX Runtime
    assert memory["device_bytes"] is None


def test_an_arm_that_answers_something_else_is_outside_its_bound(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    arm, reference, _ = loaded(sweep, store)
    arm.warm_up()
    expected = load_file(reference / "reference.safetensors")
    expected["hidden_states"] = expected["hidden_states"] + np.float32(0.1)
    save_file(expected, tmp_path / "other.safetensors")
    outside = [
        row["output"] for row in arm.check(tmp_path / "other.safetensors", BOUNDS, "exact") if not row["within_bound"]
    ]
    assert outside == ["hidden_states"]


class ByItsOwnClock:
    """A real session whose runs take the seconds that they are given, by a clock that ticks when it is looked at."""

    TICK_NS = 1000  # a busy loop ends because looking at the clock takes time, too

    def __init__(self, session: TimedSession, seconds: Iterable[float]) -> None:
        self._session, self._seconds, self._now_ns = session, iter(seconds), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def clock(self) -> int:
        self._now_ns += self.TICK_NS
        return self._now_ns

    def run(self) -> None:
        self._session.run()
        self._now_ns += round(next(self._seconds) * 1e9)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[float]], None]:
    """Let the runs of whatever is loaded take so many seconds each."""
    opened = engines.open_session

    def take(seconds: Iterable[float]) -> None:
        monkeypatch.setattr(engines, "open_session", lambda *given: ByItsOwnClock(opened(*given), seconds))

    return take


def test_a_slowdown_takes_its_share_of_the_arms_own_median_and_says_what_it_took(
    sweep: Sweep, store: Store, taking: Callable[[Iterable[float]], None]
) -> None:
    def runs() -> Iterator[float]:
        yield from [0.001] * 3  # the warm-up, whose runs agree; then the machine has become slower
        yield from itertools.cycle([0.003, 0.004, 0.014])  # of median 4 ms and mean 7

    taking(runs())
    arm, _, _ = loaded(sweep, store, slowdown=2.0)
    assert arm.warm_up()["median_s"] == pytest.approx(0.001, abs=1e-5)
    slots = [arm.slot(20) for _ in range(3)]
    for slot, median_before in zip(slots, [0.001, 0.004, 0.004], strict=True):  # its median is that of the slot before
        assert slot["busy_s"] == pytest.approx([2.0 * median_before] * 20, abs=1e-5)
        net = [total - busy for total, busy in zip(slot["seconds"], slot["busy_s"], strict=True)]
        assert {round(seconds, 4) for seconds in net} == {0.003, 0.004, 0.014}


def test_without_a_slowdown_an_arm_takes_what_its_session_takes(
    sweep: Sweep, store: Store, taking: Callable[[Iterable[float]], None]
) -> None:
    taking(itertools.repeat(0.005))
    arm, _, _ = loaded(sweep, store)
    arm.warm_up()
    slot = arm.slot(20)
    assert set(slot["busy_s"]) == {0.0}
    assert slot["seconds"] == pytest.approx([0.005] * 20, abs=1e-5)


def test_timing_before_loading_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="load was not called"):
        Arm().slot(1)
