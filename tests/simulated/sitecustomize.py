"""Read by every Python that has this folder on its path: it gets the tests' engine, and a machine that is never busy.

What is replaced is replaced when its module is imported, so that a Python which imports none of it starts as quickly.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def _engines(module: ModuleType) -> None:
    module.ENGINES["simulated"] = module.EngineInfo("simulated_engine", "The tests' own: replays timings.", graph=False)


def _monitor(module: ModuleType) -> None:
    from simulated_engine import Quiet

    module.Monitor = Quiet


def _ceilings(module: ModuleType) -> None:
    from simulated_engine import ceilings

    module.measure = ceilings


def _memory(module: ModuleType) -> None:
    from simulated_engine import peak_bytes

    module.peak_bytes = peak_bytes


def _deadline(module: ModuleType) -> None:
    module.LEAST_S = float(os.environ.get("SIMULATED_DEADLINE_S", module.LEAST_S))


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "llama_bench.engines": _engines,
    "llama_bench.cluster.restart": _monitor,
    "llama_bench.cluster.arm": _memory,
    "llama_bench.bench.roofline": _ceilings,
    "llama_bench.cluster.deadline": _deadline,
}
"""Module → what is done to it once it is imported."""


class _Loader(importlib.abc.Loader):
    """Loads a module as its own loader does, and then patches it."""

    def __init__(self, loader: importlib.abc.Loader, patch: Callable[[ModuleType], None]) -> None:
        self._loader, self._patch = loader, patch

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in PATCHES:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, PATCHES[name])
        return spec


sys.meta_path.insert(0, _Finder())
