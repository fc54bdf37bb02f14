"""An engine that runs nothing: its runs take, by its own clock, the seconds that were recorded of real ones.

What is replayed depends on the cell, the arm, and how many restarts of the cell are finished, and on nothing else: a
sweep that was disturbed a hundred times ends with the same timings as an undisturbed one. Told by its environment:

SIMULATED_STORE      the folder of the store, in which it finds its cell and torch's outputs
SIMULATED_TIMINGS    the recording, as `record.py` writes it; without one a run takes what it sleeps
SIMULATED_ORDERS     a folder of orders: `<size>-<length>-<provider>.hang` or `.crash` befalls the next run of that cell
SIMULATED_MISSING    why this machine does not have the engine
SIMULATED_RUN_S      real seconds that a run sleeps, 0 unless said
SIMULATED_GPU        a folder in which the sessions that live count one another, as on a GPU that they share
SIMULATED_GPU_ROOM   so many sessions fit onto it; one more is out of memory, in the words of ONNX Runtime
SIMULATED_GPU_BIG    name of an arm that never fits
SIMULATED_GPU_AT     the run in which a session wants its memory, 0 (unless said) is when it is loaded
SIMULATED_TICK_NS    what a look at its clock takes, by that clock, 0 unless said; without it no busy loop ends
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from llama_bench.bench.interference import Observed
from llama_bench.bench.race import Ceiling
from llama_bench.engines import Task, TimedSession
from llama_bench.engines.failures import failing
from llama_bench.errors import WorkError

NO_ROOM = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMul node. "
    "Name:'/lm_head/MatMul' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
    "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size 2830172160"
)


def settings(engine: str, session: Any, target: Any, physical_cores: int) -> dict[str, Any]:
    own = {"io": session.io, "provider_options": {}, "config": dict(session.config)}
    return {"engine": engine, "provider": target.provider, "intra_op_num_threads": target.threads or 1, **own}


def missing(settings: Mapping[str, Any]) -> str | None:
    return os.environ.get("SIMULATED_MISSING")


def open_session(folder: Path, settings: Mapping[str, Any], task: Task) -> Session:
    return Session(settings, task)


class Session(TimedSession):
    """One arm in one restart."""

    token_seconds: tuple[float, ...] = ()

    def __init__(self, settings: Mapping[str, Any], task: Task) -> None:
        self.providers = [settings["provider"]]
        self._task, self._arm = task, settings["arm"]
        self._store = Path(os.environ["SIMULATED_STORE"])
        self._orders = os.environ.get("SIMULATED_ORDERS")
        self._sleep_s = float(os.environ.get("SIMULATED_RUN_S", "0"))
        self._tick_ns = int(os.environ.get("SIMULATED_TICK_NS", "0"))
        self._now_ns, self._runs = 0, 0
        self._seconds = self._recorded()
        with failing("to load model.onnx", gpu=True):
            self._take_memory()

    @property
    def clock(self) -> Callable[[], int]:
        return self._look if self._sleep_s == 0 else time.perf_counter_ns

    def _look(self) -> int:
        self._now_ns += self._tick_ns
        return self._now_ns

    def run(self) -> None:
        with failing("while running", gpu=True):
            self._take_memory()
        if self._orders is not None:
            size, length = self._task.model["hidden_size"], self._task.workload["sequence"]
            _obey(Path(self._orders), f"{size}-{length}-{self.providers[0][:3].lower()}")
        time.sleep(self._sleep_s)
        # the value of a run depends on its number alone, so that a warm-up of any length leaves the timed ones alike
        self._now_ns += round(1e9 * self._seconds[self._runs % len(self._seconds)])
        self._runs += 1

    def _take_memory(self) -> None:
        """Be on the GPU from the run on that says so, if there is room."""
        shared, at = os.environ.get("SIMULATED_GPU"), int(os.environ.get("SIMULATED_GPU_AT", "0"))
        if shared is None or self._runs < at:
            return
        Path(shared, str(os.getpid())).touch()
        living = [file for file in Path(shared).iterdir() if psutil.pid_exists(int(file.name))]
        if len(living) > int(os.environ["SIMULATED_GPU_ROOM"]) or self._arm == os.environ.get("SIMULATED_GPU_BIG"):
            raise RuntimeError(NO_ROOM)

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what torch gave for the same inputs and this model's width: sizes have their inputs in common."""
        from safetensors.numpy import load_file

        for inputs in sorted(self._store.glob("artifacts/*/inputs.safetensors")):
            found, given = load_file(inputs), self._task.inputs
            if found.keys() == given.keys() and all(np.array_equal(found[name], given[name]) for name in found):
                reference = load_file(inputs.with_name("reference.safetensors"))
                if reference["hidden_states"].shape[-1] == self._task.model["hidden_size"]:
                    return reference
        raise WorkError(f"{self._store}: no reference for these inputs")

    def score(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        raise WorkError("nothing is scored here")

    def device_bytes(self) -> int | None:
        return None

    def _recorded(self) -> list[float]:
        """Return the recorded seconds of the runs of this arm in this restart, in their order."""
        if "SIMULATED_TIMINGS" not in os.environ:
            return [0.0]
        with open(os.environ["SIMULATED_TIMINGS"], encoding="utf-8") as file:
            recording = json.load(file)
        runs: list[float] = recording[self._cell["model"]][self._cell["workload"]][self._arm][self._finished]
        return runs

    @cached_property
    def _cell(self) -> Mapping[str, Any]:
        """The entry in run.json of the cell that is measured: no two of a target have the same size and length."""
        wanted = (self._task.model["hidden_size"], self._task.workload["sequence"])
        for cell in json.loads((self._run / "run.json").read_text(encoding="utf-8"))["cells"]:
            if (cell["hidden_size"], cell["given"]) == wanted and cell["target"].startswith(
                self.providers[0][:3].lower()
            ):
                return dict(cell)
        raise WorkError(f"{self._run}: no cell of size and length {wanted}")

    @property
    def _run(self) -> Path:
        found = sorted(self._store.glob("*/*/run.json"))
        if not found:
            raise FileNotFoundError(self._store)
        return found[-1].parent

    @property
    def _finished(self) -> int:
        """How many restarts of the cell are finished."""
        return len(list(self._run.glob(f"pieces/{self._cell['id']}-r*.parquet")))


def _obey(orders: Path, cell: str) -> None:
    """Carry out an order for `cell`, if there is one: whoever removes its file has it."""
    for order in orders.glob(f"{cell}.*"):
        try:
            order.unlink()
        except FileNotFoundError:
            continue
        if order.suffix == ".crash":
            os.abort()
        while True:
            time.sleep(60)


class Quiet:
    """Sees that nothing disturbed a block: simulated time is disturbed by nothing."""

    def __init__(self, *given: object) -> None: ...
    def begin(self) -> None: ...
    def close(self) -> None: ...

    def end(self) -> Observed:
        return Observed(None, None, None, None, None, None, None)


def ceilings(provider: str, threads: int) -> list[Ceiling]:
    """Return ceilings that no recorded run comes near."""
    return [Ceiling("matmul", "fp32", 1e18, "simulated"), Ceiling("read", "", 1e18, "simulated")]


def peak_bytes() -> int:
    """Return the memory that a simulated process takes."""
    return 100_000_000
