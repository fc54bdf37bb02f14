"""What ONNX Runtime, torch and CUDA say, in their own words, becomes one line that says what to do."""

from __future__ import annotations

import pytest

from llama_bench.bench.nvml import Memory
from llama_bench.engines.failures import LONGEST, MEANINGS, explained, failing
from llama_bench.errors import GpuMemoryError, WorkError

ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Mul node. "
    "Name:'Mul_8702' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:368 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
    "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size 2830172160\n"
)


def call(error_type: str, says: str, where: str) -> str:
    """Return what ONNX Runtime's CudaCall throws on Linux."""
    signature = (
        "std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, "
        f"const char*, SUCCTYPE, const char*, const char*, int) [with ERRTYPE = {error_type}; bool THRW = true; "
        f"SUCCTYPE = {error_type}; std::conditional_t<THRW, void, common::Status> = void] "
    )
    at = "/onnxruntime_src/onnxruntime/core/providers/cuda/"
    return (
        f"{at}cuda_call.cc:122 {signature}{at}cuda_call.cc:114 {signature}{says} ; GPU=0 ; hostname=node-7 ; "
        f"file={at}{where}"
    )


BEGIN = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: "
EXECUTION = "cuda_execution_provider.cc ; line="

OLD_DRIVER = call(
    "cudaError",
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
    EXECUTION + "336 ; expr=cudaSetDevice(info_.device_id);",
)
NO_DEVICE = call("cudaError", "CUDA failure 100: no CUDA-capable device is detected", EXECUTION + "336 ; expr=cuda…;")
STREAM = call("cudaError", "CUDA failure 2: out of memory", "cuda_stream_handle.cc ; line=175 ; expr=cudaStream…;")
CUBLAS = BEGIN + call("cublasStatus_t", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", EXECUTION + "164 ; expr=c…;")
CAPTURE = call("cudaError", "CUDA failure 900: operation not permitted when stream is capturing", "a.cc ; line=1 ; …")
BUSY = call("cudaError", "CUDA failure 46: all CUDA-capable devices are busy or unavailable", EXECUTION + "336 ; …")
TORCH = (
    "CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of 23.65 GiB of which 11.06 MiB is "
    "free. Including non-PyTorch memory, this process has 23.60 GiB memory in use. Of the allocated memory 22.90 GiB "
    "is allocated by PyTorch, and 194.87 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
    "documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
ASYNCHRONOUS = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at "
    "some other API call, so the stacktrace below might be incorrect.\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
FULL = Memory(total=80_000_000_000, free=1_200_000_000, own=70_100_000_000)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (ARENA, ", 2.8 GB more were wanted"),
        (STREAM, ""),
        (CUBLAS, ""),
        (BEGIN + "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED", ""),
        (TORCH, ", 23.1 MB more were wanted"),
        ("CUDA error: out of memory", ""),
        ("Available memory of 1048576 is smaller than requested bytes of 167772160", ", 167.8 MB more were wanted"),
        (ARENA.replace("2830172160", "4585490524328388608"), ""),
    ],
)
def test_want_of_memory_on_a_gpu_is_a_line_with_numbers_and_what_to_change(text: str, asked: str) -> None:
    error = explained(RuntimeError(text), "ONNX Runtime failed while running", True, FULL)
    assert isinstance(error, GpuMemoryError)
    at = " at Mul 'Mul_8702'" if "Mul_8702" in text else ""
    pieces = ", but in pieces, or not for a CUDA graph" if asked and "MB" in asked else ""
    then = "leave cuda_graph and gpu_mem_limit out, make" if pieces else "make"
    assert str(error) == (
        f"ONNX Runtime failed while running{at}: the GPU is out of memory{asked}, 1.2 of 80.0 GB are free, this arm "
        f"holds 70.1 GB, others 8.7 GB{pieces}: {then} batch or sequence smaller, or quantise the weights"
    )


def test_a_node_without_a_name_is_named_by_its_operator() -> None:
    error = explained(RuntimeError(ARENA.replace("Mul_8702", "")), "failed", True, FULL)
    assert str(error).startswith("failed at Mul: the GPU is out of memory")


def test_what_nvml_does_not_tell_is_left_out() -> None:
    unknown = explained(RuntimeError(ARENA), "failed", True, Memory(80_000_000_000, 1_200_000_000))
    assert "1.2 of 80.0 GB are free: make batch" in str(unknown)


def test_want_of_memory_on_the_host_is_no_gpus() -> None:
    for text, gpu in ((ARENA, False), (BEGIN + "std::bad_alloc", True), (BEGIN + "std::bad_alloc", False)):
        error = explained(RuntimeError(text), "ONNX Runtime failed to load m", gpu, FULL)
        assert type(error) is WorkError
        assert ": out of memory" in str(error)
        assert "GPU" not in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OLD_DRIVER, "the NVIDIA driver is too old for this build's CUDA: update the driver"),
        ("The NVIDIA driver on your system is too old (found version 11040).", "is too old for this build's CUDA"),
        (NO_DEVICE, "the NVIDIA driver sees no GPU: nvidia-smi must list one"),
        ("Found no NVIDIA driver on your system. Please check", "the NVIDIA driver sees no GPU"),
        ("No CUDA GPUs are available", "the NVIDIA driver sees no GPU"),
        (BUSY, "lets one process in at a time, and arms share it: nvidia-smi --compute-mode=DEFAULT"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", "lets one process in at a time"),
        (CAPTURE, "a CUDA graph could not be captured"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the "
            "user as all compute graph nodes have not been partitioned to the CUDAExecutionProvider",
            "a CUDA graph takes no node on the CPU",
        ),
        ("CUDA error: no kernel image is available for execution on the device", "no code for a GPU of this generat"),
        (ASYNCHRONOUS, "a kernel touched memory that is not its own"),
        ("CUDA error: uncorrectable ECC error encountered", "the GPU's memory is faulty"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: "
            "libcudnn.so.9: cannot open shared object file: No such file or directory",
            r"pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
    ],
)
def test_what_is_known_says_what_to_do_and_then_their_own_words(text: str, words: str) -> None:
    error = explained(RuntimeError(text), "ONNX Runtime failed to load m", True, FULL)
    assert type(error) is WorkError
    said = str(error)
    assert said.startswith("ONNX Runtime failed to load m: ")
    assert words in said
    for noise in ("\n", "hostname", "onnxruntime_src", "std::", "TORCH_USE_CUDA_DSA", "[ONNXRuntimeError]"):
        assert noise not in said
    assert len(said) < 350


def test_an_unknown_message_keeps_its_own_words_and_their_class_where_it_says_something() -> None:
    assert str(explained(KeyError("y"), "torch failed while running")) == "torch failed while running: KeyError: 'y'"
    assert str(explained(RuntimeError("no\nsuch op"), "it failed")) == "it failed: no such op"
    assert len(str(explained(RuntimeError("x" * 10_000), "it failed"))) == len("it failed: ") + LONGEST


def test_every_word_for_what_is_known_says_what_to_do() -> None:
    assert all(":" in words for words in MEANINGS.values())


def test_an_error_of_ours_passes_through() -> None:
    with pytest.raises(WorkError, match="ours"), failing("while running"):
        raise WorkError("ours")
