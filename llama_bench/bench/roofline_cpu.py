"""The ceilings of a CPU: every way to multiply, copy and read that is installed. See :mod:`.roofline`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import psutil

from llama_bench.bench import cpu
from llama_bench.bench.race import Ceiling, Run, Shape, Way, clocked, fastest
from llama_bench.engines import onnxruntime as engine
from llama_bench.sweep import Session, Target

PRODUCTS: tuple[Shape, ...] = (*((size,) * 3 for size in (256, 512, 1024, 2048)), (8192, 2048, 2048))
"""A small one for the trial of the ways; one that ends within a millisecond, which even a busy machine lets run in
peace now and then; larger ones, and a tall one as in a model's linear layers."""

MEMORY_BYTES = (256 * 2**20, 512 * 2**20)
"""What is read, and copied from its one half to the other: four times the last-level cache within these bounds."""

SECONDS = 2.5  # of measuring; imports come before
TENSOR_INT32 = 6  # onnx.TensorProto.INT32


def measure(threads: int) -> list[Ceiling]:
    """Return the ceilings of this machine's CPUs with `threads` threads; torch's own number is put back."""
    least, most = MEMORY_BYTES
    size = min(max(least, 4 * (cpu.cache_bytes() or 0)), most, psutil.virtual_memory().available // 4)
    with _libraries(threads):
        return fastest(ways(threads), PRODUCTS, size, SECONDS)


def ways(threads: int) -> list[Way]:
    """Return every way that is tried on the CPU, the most important ceilings first."""
    import numpy as np

    ort = partial(
        ort_product, engine.settings("onnxruntime", Session(), Target(tag="bench_cpu", threads=threads), threads)
    )
    memory = cache(_memory)
    # fmt: off
    return [
        Way("matmul", "fp32", "ONNX Runtime MatMul", partial(ort, "MatMul", "float32", "float32")),
        Way("matmul", "fp32", "torch.mm", partial(_torch_product, "float32")),
        Way("matmul", "fp32", "numpy.matmul", partial(_numpy_product, threads)),
        Way("read", "", "torch.sum", lambda shape: _torch_sum(memory(shape))),
        Way("read", "", "numpy.max", lambda shape: clocked(memory(shape).max)),
        Way("copy", "", "torch.copy_", lambda shape: _torch_copy(*np.split(memory(shape), 2))),
        Way("copy", "", "numpy.copyto", lambda shape: _numpy_copy(*np.split(memory(shape), 2))),
        Way("matmul", "int8", "ONNX Runtime MatMulInteger", partial(ort, "MatMulInteger", "uint8", "int8")),
        Way("matmul", "int8", "torch._int_mm", partial(_torch_product, "int8")),
        Way("matmul", "bf16", "torch.mm", partial(_torch_product, "bfloat16")),
        Way("matmul", "fp16", "ONNX Runtime MatMul", partial(ort, "MatMul", "float16", "float16")),
        Way("matmul", "fp16", "torch.mm", partial(_torch_product, "float16")),
    ]
    # fmt: on


def ort_product(settings: Mapping[str, Any], op: str, left: str, right: str, shape: Shape) -> Run:
    """Return `op` of a matrix of type `left` with a constant one of type `right` (numpy's names) as a run.

    MatMulInteger gives int32, MatMul what it is given.
    """
    from onnx import helper, numpy_helper

    m, k, n = shape
    types = [helper.np_dtype_to_tensor_dtype(_values((1,), name).dtype) for name in (left, right)]
    result = TENSOR_INT32 if op == "MatMulInteger" else types[0]
    graph = helper.make_graph(
        [helper.make_node(op, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", types[0], [m, k])],
        [helper.make_tensor_value_info("c", result, [m, n])],
        [numpy_helper.from_array(_values((k, n), right), "b")],
    )
    return ort_run(settings, graph)


def ort_run(settings: Mapping[str, Any], graph: Any) -> Run:
    """Return a `graph` of one input and one output in a session set up like an arm's, both bound on its device.

    Raises where the provider does not come up or has no kernel.
    """
    import onnxruntime as ort
    from onnx import helper

    provider = settings["provider"]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = engine.session_options(settings)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if provider == engine.CPU else "1")
    providers = [(provider, dict(settings["provider_options"]))]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    device = "cpu" if provider == engine.CPU else "cuda"
    (given,), (result,) = graph.input, graph.output
    size, into = ([axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in (given, result))
    dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    binding = session.io_binding()
    binding.bind_ortvalue_input(given.name, ort.OrtValue.ortvalue_from_numpy(_values(size, dtype), device, 0))
    buffer = ort.OrtValue.ortvalue_from_shape_and_type(into, result.type.tensor_type.elem_type, device, 0)
    binding.bind_ortvalue_output(result.name, buffer)

    def once() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return clocked(once)


def _torch_product(dtype: str, shape: Shape) -> Run:
    import torch

    m, k, n = shape
    kind: torch.dtype = getattr(torch, dtype)
    a, b = (torch.from_numpy(_values(size)).to(kind) for size in ((m, k), (k, n)))
    if kind == torch.int8:
        return clocked(lambda: torch._int_mm(a, b))
    c = torch.empty(m, n, dtype=kind)
    return clocked(lambda: torch.mm(a, b, out=c))


def _numpy_product(threads: int, shape: Shape) -> Run:
    """Multiply by numpy's BLAS, which takes every CPU it may: another number of threads is another target."""
    import numpy as np

    if threads != len(cpu.allowed()):
        raise ValueError(f"numpy's threads cannot be set to {threads} here")
    m, k, n = shape
    a, b, c = _values((m, k)), _values((k, n)), _values((m, n))
    return clocked(lambda: np.matmul(a, b, out=c))


def _torch_sum(source: Any) -> Run:
    import torch

    return clocked(torch.from_numpy(source).sum)


def _torch_copy(source: Any, into: Any) -> Run:
    import torch

    a, b = torch.from_numpy(source), torch.from_numpy(into)
    return clocked(lambda: b.copy_(a))


def _numpy_copy(source: Any, into: Any) -> Run:
    import numpy as np

    return clocked(lambda: np.copyto(into, source))


def _memory(shape: Shape) -> Any:
    """Return an array of so many bytes, written once: memory that nobody wrote to is no memory yet."""
    return _values((shape[0] // 8 * 2,))


def _values(shape: Sequence[int], dtype: Any = "float32") -> Any:
    """Return an array of 1 … 7: no infinity, nothing subnormal, nothing that is slow by its value."""
    import numpy as np

    return np.resize(np.arange(1, 8).astype(dtype), shape)


@contextlib.contextmanager
def _libraries(threads: int) -> Iterator[None]:
    """Import what is needed before any clock runs, and give torch its threads; it gets its own number back."""
    import onnx
    import onnxruntime
    import torch

    assert onnx and onnxruntime
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
