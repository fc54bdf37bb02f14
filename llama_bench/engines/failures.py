"""What ONNX Runtime, torch and CUDA say when they fail, as one line that says what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from llama_bench.bench import nvml
from llama_bench.engines.cuda import CUDA_PACKAGES
from llama_bench.errors import GpuMemoryError, WorkError

LONGEST = 400
"""Characters of a message: ONNX Runtime may quote half a graph."""

NOISE = (
    r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
    r"(?:[A-Za-z]:)?[\\/]\S*[\\/]core[\\/]\S+:\d+ ",  # the place in ONNX Runtime's source
    r"std::conditional_t<.*? = void\] ",  # the signature of its CudaCall
    r"(?:void\* )?onnxruntime::\w+(?:::\w+)*(?:\([^)]*\))? (?=\S)",
    r" ; GPU=-?\d+ ; hostname=.*? ; file=\S+ ; line=\d+",
    r"\s*CUDA kernel errors might be asynchronously reported.*",  # torch's advice to its own developers
    r"\s*If reserved but unallocated memory is large.*",
)
"""What their messages hold that no user can use, as regular expressions."""

HOST_ALONE = r"std::bad_alloc|bad allocation|DefaultCPUAllocator: can't allocate memory"

NO_MEMORY = (
    r"Failed to allocate memory for requested buffer of size (?P<bytes>\d+)",
    r"is smaller than requested bytes of (?P<bytes>\d+)",
    r"CUDA out of memory(?:\. Tried to allocate (?P<size>[\d.]+ [KMG]iB))?",
    r"CUDA (?:failure 2\b|error: out of memory)|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY",
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_(?:INTERNAL_ERROR_DEVICE_)?ALLOC(?:ATION)?_FAILED",
    HOST_ALONE,
)
"""How they say that there is no memory: ONNX Runtime's arena and its limit, torch, CUDA, its libraries, C++."""

PLAIN = ("RuntimeError", "ValueError")
"""Names of errors that say no more than their message does."""

LESS = "make batch or sequence smaller, or quantise the weights"

CLOSED = "leave cuda_graph and gpu_mem_limit out"

MEANINGS = {
    r"driver version is insufficient|CUDA failure 35\b|driver on your system is too old":
        "the NVIDIA driver is too old for this build's CUDA: update the driver",
    r"no CUDA-capable device|CUDA failure 100\b|No CUDA GPUs are available|Found no NVIDIA driver":
        "the NVIDIA driver sees no GPU: nvidia-smi must list one, and a container needs --gpus all",
    r"devices?(?:\(s\))? (?:is/)?are (?:all )?busy or unavailable|CUDA failure 46\b":
        "the GPU lets one process in at a time, and arms share it: nvidia-smi --compute-mode=DEFAULT",
    r"no kernel image is available|CUDA failure 209\b":
        "this build has no code for a GPU of this generation: take another version of the library",
    r"PTX was compiled with an unsupported toolchain|CUDA failure 222\b":
        "the NVIDIA driver is older than the code that is to run: update the driver",
    r"graph capture feature as requested by the user":
        "a CUDA graph takes no node on the CPU and no control flow: fuse the attention, or leave cuda_graph out",
    r"stream is capturing|CUDA failure 90[0-9]\b|cudaErrorStreamCapture\w+":
        "a CUDA graph could not be captured, since a node waits or takes memory meanwhile: leave cuda_graph out",
    r"illegal memory access|CUDA failure 700\b|unspecified launch failure|CUDA failure 719\b":
        "a kernel touched memory that is not its own, a defect of the engine or of a pass: leave the recipe out",
    r"uncorrectable ECC error|CUDA failure 214\b":
        "the GPU's memory is faulty: nvidia-smi -q -d ECC has the count; restart the machine, or use another GPU",
    r"GPU (?:is lost|has fallen off the bus)|CUDA failure 79\d\b":
        "the GPU was lost: nvidia-smi may say why; restart the machine",
    r"cannot open shared object file":
        f"a library is not installed here: {CUDA_PACKAGES}",
}  # fmt: skip
"""What they say, as a regular expression → what it means, and what to do. The first that fits counts."""


@contextlib.contextmanager
def failing(when: str, *, gpu: bool = False, who: str = "ONNX Runtime") -> Iterator[None]:
    """Turn whatever `who` raises `when` it does something into a WorkError of one line.

    `gpu` says whether its memory is a GPU's: then want of it is a GpuMemoryError, with what NVML knows.
    """
    try:
        yield
    except WorkError:
        raise
    except Exception as error:  # neither ONNX Runtime's exceptions nor torch's share a base of their own
        raise explained(error, f"{who} failed {when}", gpu) from error


def explained(error: Exception, what: str, gpu: bool = False, memory: nvml.Memory | None = None) -> WorkError:
    """Return `error` as a WorkError that begins with `what`; `memory` is the GPU's, else NVML is asked for it."""
    text = said(error)
    wanted = next((found for pattern in NO_MEMORY if (found := re.search(pattern, text))), None)
    if wanted is not None:
        at = _node(text)
        if not gpu or re.search(HOST_ALONE, text):
            return WorkError(f"{what}{at}: out of memory{_asked(wanted)}: {LESS}")
        return GpuMemoryError(f"{what}{at}: {out_of_memory(wanted, memory or nvml.memory())}")
    why = next((words for pattern, words in MEANINGS.items() if re.search(pattern, text)), None)
    if why is not None:
        return WorkError(f"{what}: {why} ({text[:LONGEST]})")
    kind = type(error).__name__
    named = kind in PLAIN or type(error).__module__.startswith("onnxruntime")
    return WorkError(f"{what}: {text[:LONGEST]}" if named else f"{what}: {kind}: {text[:LONGEST]}")


def out_of_memory(wanted: re.Match[str], memory: nvml.Memory | None) -> str:
    """Say what was asked of a GPU's memory, how much of it is free, and who holds the rest."""
    asked, there = _bytes(wanted), ""
    if memory is not None:
        there = f", {memory.free / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free"
        if memory.own is not None:
            there += f", this arm holds {memory.own / 1e9:.1f} GB, others {(memory.others or 0) / 1e9:.1f} GB"
    why = f"the GPU is out of memory{_asked(wanted)}{there}: {LESS}"
    if memory is not None and asked is not None and asked < memory.free:  # a graph's capture must not take memory
        why = (
            f"the GPU is out of memory{_asked(wanted)}{there}, but in pieces, or not for a CUDA graph: {CLOSED}, {LESS}"
        )
    return why


def said(error: Exception) -> str:
    """Return the message of `error` as one line, without what only its authors can use."""
    text = " ".join(str(error).split())
    for pattern in NOISE:
        text = re.sub(pattern, "", text)
    return text.strip()


def line(error: Exception) -> str:
    """Return the message of `error` as one line of bounded length."""
    return said(error)[:LONGEST]


def _asked(wanted: re.Match[str]) -> str:
    asked = _bytes(wanted)
    return "" if asked is None else f", {_size(asked)} more were wanted"


BEYOND_ALL = 2**50
"""ONNX Runtime has asked for more bytes than any machine has, where a size was negative."""

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _bytes(wanted: re.Match[str]) -> int | None:
    """Return how many bytes a message says were asked for, None where it does not."""
    groups = wanted.groupdict()
    if groups.get("bytes"):
        asked = int(groups["bytes"])
        return asked if asked < BEYOND_ALL else None
    if groups.get("size"):
        number, unit = groups["size"].split()
        return int(float(number) * UNITS[unit])
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _node(text: str) -> str:
    """Return which node ran, where ONNX Runtime says it: ` at MatMul 'lm_head'`."""
    found = re.search(r"while running (\w+) node\. Name:\\?'(.*?)\\?'", text)
    if found is None:
        return ""
    return f" at {found[1]} {found[2]!r}" if found[2] else f" at {found[1]}"
