"""One arm of decode_peers.py in a process of its own.

    python benchmarks/decode_worker.py SPEC.json

Loads what the specification says, warms it up, writes its logits beside the specification, and says on stdout that it
is ready. Then each line on stdin is a number of runs, and each answer the seconds of these runs. Only the standard
library is imported before it is known what is to run: the peer's Python, which has no llama_bench, runs this file too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def timed_loop(path: str) -> ModuleType:
    """Load llama_bench's module of the timed loop from its file, so that every arm is timed by the same code."""
    spec = importlib.util.spec_from_file_location("slot", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slot"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def open_engine(spec: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], Any], dict[str, Any]]:
    """Open a session of llama_bench; return its run, what reads the logits, and facts."""
    import numpy as np

    from llama_bench.engines import Task, open_session

    inputs = {name: np.asarray(values, dtype=np.int64) for name, values in spec["inputs"].items()}
    session = open_session(Path(spec["folder"]), spec["settings"], Task(spec["model"], spec["workload"], inputs))
    return session.run, lambda: session.outputs()["logits"][0, -1], {"providers": session.providers}


def open_peer(spec: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], Any], dict[str, Any]]:
    """Open llama.cpp on a GGUF file, its cache filled; return as `open_engine` does."""
    import llama_cpp
    import numpy as np

    *context, last = spec["inputs"]["input_ids"][0]
    threads = spec["threads"]
    model = llama_cpp.Llama(
        spec["gguf"],
        n_ctx=len(context) + 1,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=spec["flash_attention"],
        verbose=False,
    )
    model.eval(context)
    size = model.n_vocab()

    def run() -> None:
        model.n_tokens = len(context)  # eval drops what the cache holds beyond it
        model.eval([last])
        model._ctx.get_logits()  # which waits for them

    def logits() -> Any:
        return np.ctypeslib.as_array(model._ctx.get_logits(), shape=(size,)).copy()

    return run, logits, {"version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode()}


OPEN = {"engine": open_engine, "llama.cpp": open_peer}
"""Kind of an arm → what opens it."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    path = Path(sys.argv[1])
    spec = json.loads(path.read_text(encoding="utf-8"))
    slot = timed_loop(spec["slot"])
    run, logits, facts = OPEN[spec["kind"]](spec)
    run()
    import numpy as np

    np.save(path.with_suffix(".npy"), np.asarray(logits(), dtype=np.float32))
    slot.warm_up(run)
    print(json.dumps({"ready": facts}), file=answers)
    for line in sys.stdin:
        print(json.dumps({"seconds": slot.time_slot(run, int(line)).seconds}), file=answers)


if __name__ == "__main__":
    main()
