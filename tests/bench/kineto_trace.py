"""Write `kineto_trace.json`: a Chrome trace as torch's profiler writes it, made by hand in kineto's documented format.

Two runs of a small graph with ONNX Runtime's and cuBLAS's names of kernels, a run before them that does not count, and
a mark before each and behind the last. The second run's copy overlaps a product on another stream for 2 µs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("kineto_trace.json")

MARK = "at::cuda::(anonymous namespace)::spin_kernel(long)"
NORM = "void onnxruntime::contrib::cuda::SkipLayerNormKernelSmall<__half, 128u, 4>(__half*, __half const*, float)"
PRODUCT = "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT"
FLASH = (
    "void onnxruntime::flash::flash_fwd_splitkv_kernel<onnxruntime::flash::Flash_fwd_kernel_traits<128, 64, 128, 4, "
    "false, false, cutlass::half_t>, false, false, true>(onnxruntime::flash::Flash_fwd_params)"
)
COPY = "Memcpy DtoH (Device -> Pinned)"

# name, start and duration in microseconds, stream
RUN = [(NORM, 0.0, 2.0, 20), (PRODUCT, 3.0, 10.0, 20), (FLASH, 14.0, 5.0, 20), (PRODUCT, 19.0, 11.0, 20)]
SECOND = [(NORM, 0.0, 4.0, 20), (PRODUCT, 5.0, 12.0, 20), (FLASH, 18.0, 7.0, 20), (PRODUCT, 25.0, 9.0, 20)]
COPIED = (COPY, 32.0, 6.0, 24)


def event(name: str, start: float, duration: float, stream: int, correlation: int) -> dict[str, Any]:
    copied = name.startswith("Memcpy")
    args: dict[str, Any] = {"External id": 1, "device": 0, "context": 1, "stream": stream, "correlation": correlation}
    if copied:
        args |= {"bytes": 262144, "memory bandwidth (GB/s)": 43.7}
    else:
        args |= {"registers per thread": 40, "shared memory": 0, "grid": [8, 1, 1], "block": [256, 1, 1]}
        args |= {"blocks per SM": 0.06, "warps per SM": 0.5, "est. achieved occupancy %": 1}
    cat = "gpu_memcpy" if copied else "kernel"
    what = {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream}
    return {**what, "ts": start, "dur": duration, "args": args}


def trace() -> dict[str, Any]:
    begin = 5142738431.0
    warm = [(name, 100.0 + at, took, stream) for name, at, took, stream in RUN]
    first = [(name, 1000.0 + at, took, stream) for name, at, took, stream in RUN]
    second = [(name, 2000.0 + at, took, stream) for name, at, took, stream in [*SECOND, COPIED]]
    marks = [(MARK, at, 1.0, 7) for at in (900.0, 1900.0, 2900.0)]
    # the device's buffers come back in any order
    on_gpu = [
        event(n, begin + at, took, stream, i) for i, (n, at, took, stream) in enumerate(second + warm + first + marks)
    ]
    launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 4242, "tid": 4242, "dur": 4.1}
    others = [
        {"name": "process_name", "ph": "M", "ts": begin, "pid": 0, "tid": 0, "args": {"name": "python"}},
        {**launch, "ts": begin + 995.0, "args": {"cbid": 211, "correlation": 9}},
        {"ph": "s", "id": 9, "pid": 4242, "tid": 4242, "ts": begin + 995.0, "cat": "ac2g", "name": "ac2g"},
        {**launch, "cat": "Trace", "name": "PyTorch Profiler (0)", "ts": begin, "dur": 4000.0, "pid": "Spans"},
        {"name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": "", "ts": begin + 4000.0},
    ]
    about = {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H200", "numSms": 132}]}
    return {
        **about,
        "cupti_version": 27,
        "cuda_runtime_version": 13000,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": 1759000000000000000,
        "traceEvents": others + on_gpu,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(trace(), indent=1) + "\n", encoding="utf-8")
