"""The ceilings of an NVIDIA GPU: by torch where it has CUDA, else by ONNX Runtime. See :mod:`.roofline`."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from llama_bench.bench.race import Ceiling, Run, Shape, Way, fastest
from llama_bench.bench.roofline_cpu import ort_product, ort_run
from llama_bench.engines import onnxruntime as engine
from llama_bench.sweep import Session, Target

if TYPE_CHECKING:
    import torch

PRODUCTS: tuple[Shape, ...] = ((1024, 1024, 1024), (4096, 4096, 4096), (8192, 8192, 8192))
"""A small one for the trial; a product of 8192³ keeps the largest GPU busy for a millisecond."""

MEMORY_BYTES = 2**31  # what is read, and copied from its one half to the other: many times the largest L2
SECONDS = 4.0
TF32_CAPABILITY = (8, 0)  # compute capability from which there are TF32 units (Ampere): before, fp32 is meant


def measure() -> list[Ceiling]:
    """Return the ceilings of the first visible GPU; [] where neither torch nor ONNX Runtime can use one.

    Memory on the GPU is given back, but for the little that CUDA's libraries keep until the process ends.
    """
    import torch

    if torch.cuda.is_available():
        spare, _ = torch.cuda.mem_get_info()
        found = fastest(_torch_ways(), PRODUCTS, min(MEMORY_BYTES, spare // 4), SECONDS)
        l2 = torch.cuda.get_device_properties(0).L2_cache_size or None
        gc.collect()
        torch.cuda.empty_cache()
        return [replace(one, cache_bytes=l2) for one in found]
    if engine.CUDA not in _providers():
        return []
    return fastest(_ort_ways(), PRODUCTS, MEMORY_BYTES, SECONDS)


def _torch_ways() -> list[Way]:
    memory = cache(_memory)
    # fmt: off
    return [
        Way("matmul", "fp32", "torch.mm", partial(_product, "float32", False)),
        Way("read", "", "torch.sum", lambda shape: timed(memory(shape).sum)),
        Way("read", "", "torch.amax", lambda shape: timed(memory(shape).amax)),
        Way("read", "", "torch.mv", lambda shape: _product_with_vector(memory(shape))),
        Way("copy", "", "torch.copy_", lambda shape: _copy(*memory(shape).chunk(2))),
        Way("matmul", "tf32", "torch.mm", partial(_product, "float32", True)),
        Way("matmul", "fp16", "torch.mm", partial(_product, "float16", False)),
        Way("matmul", "bf16", "torch.mm", partial(_product, "bfloat16", False)),
        Way("matmul", "int8", "torch._int_mm", _int8_product),
        Way("matmul", "fp8", "torch._scaled_mm", _fp8_product),
    ]
    # fmt: on


def _ort_ways() -> list[Way]:
    def product(tf32: bool, dtype: str) -> Callable[[Shape], Run]:
        return partial(ort_product, _settings(tf32), "MatMul", dtype, dtype)

    return [
        Way("matmul", "fp32", "ONNX Runtime MatMul", product(False, "float32")),
        Way("read", "", "ONNX Runtime ReduceMax", partial(_ort_bytes, "ReduceMax")),
        Way("copy", "", "ONNX Runtime Neg", partial(_ort_bytes, "Neg")),
        Way("matmul", "tf32", "ONNX Runtime MatMul", product(True, "float32")),
        Way("matmul", "fp16", "ONNX Runtime MatMul", product(False, "float16")),
    ]


def timed(function: Callable[[], object]) -> Run:
    """Return `function`, which puts work on the GPU, as a run that CUDA's events time: its launch is not part of it."""
    import torch

    event: Any = torch.cuda.Event  # it has no types
    start, end = event(enable_timing=True), event(enable_timing=True)

    def run() -> float:
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return run


def _product(dtype: str, tf32: bool, shape: Shape) -> Run:
    """Multiply random matrices: zeros draw less power, so that a GPU clocks higher than it ever will for a model."""
    import torch

    if tf32 and torch.cuda.get_device_capability() < TF32_CAPABILITY:
        raise RuntimeError("this GPU has no TF32 units")
    m, k, n = shape
    kind: torch.dtype = getattr(torch, dtype)
    a, b = (torch.randn(size, device="cuda").to(kind) for size in ((m, k), (k, n)))
    c = torch.empty(m, n, dtype=kind, device="cuda")

    def multiply() -> None:
        torch.mm(a, b, out=c)

    run = timed(multiply)

    def once() -> float:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        return run()

    return once


def _int8_product(shape: Shape) -> Run:
    import torch

    m, k, n = shape
    a = torch.randint(-128, 127, (m, k), dtype=torch.int8, device="cuda")
    b = torch.randint(-128, 127, (n, k), dtype=torch.int8, device="cuda").t()  # the layout of the int8 units
    return timed(lambda: torch._int_mm(a, b))


def _fp8_product(shape: Shape) -> Run:
    import torch

    m, k, n = shape
    a = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")
    return timed(lambda: torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True))


def _product_with_vector(source: torch.Tensor) -> Run:
    """Read a matrix as a model that generates tokens reads its weights."""
    rows = source.view(-1, 4096)
    return timed(lambda: rows.mv(rows[0]))


def _copy(source: torch.Tensor, into: torch.Tensor) -> Run:
    return timed(lambda: into.copy_(source))


def _memory(shape: Shape) -> torch.Tensor:
    import torch

    return torch.randn(shape[0] // 2**15 * 2**13, device="cuda")  # two halves of rows of 4096 fp32 numbers


def _settings(tf32: bool) -> dict[str, Any]:
    return engine.settings("onnxruntime", Session(tf32=tf32), Target(tag="bench_gpu", provider=engine.CUDA), 1)


def _ort_bytes(op: str, shape: Shape) -> Run:
    """Read by ReduceMax, which writes one number; copy by Neg, which writes what it reads and cannot be left out."""
    from onnx import TensorProto, helper

    size = [shape[0] // (4 if op == "ReduceMax" else 8)]
    into = [1] if op == "ReduceMax" else size
    graph = helper.make_graph(
        [helper.make_node(op, ["a"], ["c"])],
        "bytes",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, into)],
    )
    return ort_run(_settings(False), graph)


def _providers() -> list[str]:
    """Providers of this build of ONNX Runtime, with CUDA's libraries loaded."""
    import onnxruntime as ort

    if engine.CUDA in ort.get_available_providers():
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    ort.set_default_logger_severity(engine.FATAL)  # a GPU that is not there is no error here
    return list(ort.get_available_providers())
