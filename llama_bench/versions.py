"""What shapes a result besides the sweep: versions of libraries, and hashes of our own source by what it is for.

Editing a chart or a message must not throw away a night of timings, so a hash covers only the packages it names.
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llama_bench import __version__
from llama_bench.errors import WorkError

ROOT = Path(__file__).parent

SHAPING = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxoptimizer", "numpy", "ray")
"""Distributions whose version may change a graph, a number or its timing; ONNX Runtime goes by two names."""

ENGINE = ("onnxruntime-gpu", "onnxruntime")

MEASURING = (
    "model", "passes", "engines", "bench", "graph",
    "cluster.actors", "cluster.arm", "cluster.cell", "cluster.ceilings", "cluster.examine", "cluster.job",
    "cluster.launch", "cluster.processes", "cluster.restart", "cluster.rows",
)  # fmt: skip
"""The parts of this package that decide what is timed and how."""

STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "export": (("model",), ("torch", "onnx", "onnxscript")),
    "onnxoptimizer": (("passes", "graph"), ("onnxoptimizer", "onnx")),
}
"""Build stage → the parts of this package and the distributions that shape the bytes of what it builds."""


def libraries() -> dict[str, str]:
    """Return name → version of what shapes results: libraries, this package, Python.

    Raises WorkError when both builds of ONNX Runtime are installed: they overwrite each other's files.
    """
    engines = {name: found for name in ENGINE if (found := _version(name))}
    if len(engines) > 1:
        raise WorkError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall --yes both, then install one"
        )
    others = {name: _version(name) or "missing" for name in SHAPING}
    return {**others, **engines, "llama_bench": __version__, "python": platform.python_version()}


def code(*parts: str) -> str:
    """Return the SHA-256 of the source of `parts`: sub-packages or modules of this package (`model`, `cluster.arm`).

    Line ends are normalised, so that a checkout on another system has the same hash. Raises FileNotFoundError for a
    part that does not exist.
    """
    digest = hashlib.sha256()
    for part in sorted(set(parts)):
        for path in _sources(part):
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0{text}\0".encode())
    return digest.hexdigest()


def stages() -> dict[str, str]:
    """Return, for :func:`llama_bench.plan.make`, build stage → what shapes its output besides the spec."""
    return {
        stage: " ".join([code(*parts), *(f"{name}={_version(name) or 'missing'}" for name in distributions)])
        for stage, (parts, distributions) in STAGES.items()
    }


def measuring() -> str:
    """Return the hash of the code that decides what is timed and how; reports and messages are no part of it."""
    return code(*MEASURING)


def _sources(part: str) -> list[Path]:
    folder = ROOT.joinpath(*part.split("."))
    if folder.is_dir():
        return sorted(folder.rglob("*.py"))
    module = folder.with_suffix(".py")
    if not module.is_file():
        raise FileNotFoundError(f"llama_bench has no part {part!r}")
    return [module]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
