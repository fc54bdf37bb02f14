"""Building one artifact: an export, a reference, or a pass applied to its parent. Works without Ray."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama_bench import node_cache
from llama_bench.bench.proc import peak_bytes
from llama_bench.plan import Artifact
from llama_bench.store import Store
from llama_bench.sweep import AnyModel, OwnModel, Pass, Text, Workload
from llama_bench.sweep_own import model_of


def build(artifact: Artifact, store: Store) -> dict[str, Any]:
    """Build `artifact` into `store` and return its manifest; its parent must be there. Works without Ray.

    Raises WorkError when the export or the pass fails.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llama-bench-") as name:
        made = _MAKE[artifact.kind](artifact, store, Path(name))
        manifest = {"label": artifact.label, "kind": artifact.kind, "parent": artifact.parent, "spec": artifact.spec}
        timed = {"build_s": time.perf_counter() - begin, "peak_bytes": peak_bytes()}
        saved = store.save(artifact.id, Path(name), {**manifest, **made, **timed})
    shutil.rmtree(_state(artifact, store), ignore_errors=True)
    return saved


def _export(artifact: Artifact, store: Store, folder: Path) -> dict[str, Any]:
    from llama_bench.model.export import export
    from llama_bench.own.take import take

    model, workload = _model_and_workload(artifact.spec)
    return {"export": take(model, folder) if isinstance(model, OwnModel) else export(model, workload, folder)}


def _reference(artifact: Artifact, store: Store, folder: Path) -> dict[str, Any]:
    from llama_bench.model.reference import make
    from llama_bench.own import reference

    model, workload = _model_and_workload(artifact.spec)
    if isinstance(model, OwnModel):
        return {"reference": reference.make(model, workload, folder)}
    text = artifact.spec["text"] and Text.model_validate(artifact.spec["text"])
    return {"reference": make(model, workload, text, folder)}


def _pass(artifact: Artifact, store: Store, folder: Path) -> dict[str, Any]:
    from llama_bench.passes import apply

    assert artifact.parent is not None
    export = store.manifest(artifact.parent)
    while export["parent"] is not None:
        export = store.manifest(export["parent"])
    model, workload = _model_and_workload(export["spec"])
    step, source = Pass.model_validate(artifact.spec), store.fetch(artifact.parent)
    return {"effect": apply(step, source, folder, model, workload, _state(artifact, store)).to_dict()}


_MAKE: dict[str, Callable[[Artifact, Store, Path], dict[str, Any]]] = {
    "export": _export,
    "reference": _reference,
    "pass": _pass,
}


def _model_and_workload(spec: Mapping[str, Any]) -> tuple[AnyModel, Workload]:
    return model_of(spec["model"]), Workload.model_validate(spec["workload"])


def _state(artifact: Artifact, store: Store) -> Path:
    """Return the folder in which a long pass keeps what a killed task must not lose; it is gone when all is built."""
    return store.cache / f"{node_cache.TEMPORARY}state-{artifact.id}"
