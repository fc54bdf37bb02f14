"""Arms whose engine a node does not have, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_bench import engines
from llama_bench.cluster.processes import Processes
from llama_bench.store import Store

from ..simulated import sweep as recorded
from .conftest import measure


def test_arms_of_an_engine_that_is_not_here_are_skipped_and_one_process_finds_that_out(
    tiny: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    once = Processes.once

    def counted(self: Processes, function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ == "_missing":
            asked.append(len(arguments[0]))
        return once(self, function, *arguments)

    for key, value in recorded.environment(tmp_path, SIMULATED_MISSING="its library is not here").items():
        monkeypatch.setenv(key, value)
    monkeypatch.syspath_prepend(recorded.HERE)
    monkeypatch.setitem(engines.ENGINES, "simulated", engines.EngineInfo("simulated_engine", "", graph=False))
    monkeypatch.setattr(Processes, "once", counted)
    slow = {"engine": "simulated", "session": {"slowdown": 1.0}}
    tiny["recipes"] = {"original": {}, "one": {"engine": "simulated"}, "two": slow}
    tiny["measure"] |= {"confirm": False}
    frames, events = measure(tiny, store)
    assert asked == [2]
    rows = frames.failures.collect()
    assert rows.select("recipe", "stage", "kind", "message").rows() == [
        (recipe, "engine", "skipped", "its library is not here") for recipe in ("one", "two")
    ]
    assert not [event for event in events if event["kind"] == "failure"]
    assert set(frames.timings.collect()["recipe"]) == {"original", "control"}
