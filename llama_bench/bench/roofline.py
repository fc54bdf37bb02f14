"""What this machine can do at most: operations a second of a matrix product, and bytes a second of its memory.

The ways to get there are listed in :mod:`llama_bench.bench.roofline_cpu` and :mod:`llama_bench.bench.roofline_cuda`;
:mod:`llama_bench.bench.race` finds the fastest.
"""

from __future__ import annotations

from llama_bench.bench.race import Ceiling
from llama_bench.engines import onnxruntime as engine

GPU = (engine.CUDA, "TensorrtExecutionProvider")


def measure(provider: str, threads: int) -> list[Ceiling]:
    """Return the ceilings of this machine's CPU with `threads` threads, or of its GPU; [] where none can be measured.

    Takes about 2.5 s and the imports of torch and ONNX Runtime (1.5 s on 2 cores); 4 s and CUDA's start on a GPU. To
    be called in a process of its own: it sets the libraries' threads and fills memory.

    The idea is the roofline model of Williams, Waterman & Patterson (2009), "Roofline: An Insightful Visual
    Performance Model for Multicore Architectures", whose ceilings are measured and not read from a data sheet.
    """
    if provider in GPU:
        from llama_bench.bench import roofline_cuda

        return roofline_cuda.measure()
    if provider != engine.CPU:
        return []
    from llama_bench.bench import roofline_cpu

    return roofline_cpu.measure(threads)
