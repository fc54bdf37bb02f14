"""Why CUDA cannot be used here, and what to do: no driver, one that is too old, no GPU, a library that is missing.

Source of the numbers: CUDA Driver API reference, CUresult. A driver of CUDA n runs every program of CUDA n or older
("minor version compatibility", CUDA Compatibility).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from pathlib import Path
from typing import Any

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"

LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
"""Provider → the library of ONNX Runtime that has it, which needs others that do not come with it."""

DRIVER = "libcuda.so.1"

NO_GPU = 100

_WORDS: dict[int, str] = {
    34: f"{DRIVER} is CUDA's stub and no driver: take its folder out of LD_LIBRARY_PATH",
    NO_GPU: "the NVIDIA driver sees no GPU: nvidia-smi must list one, and a container needs --gpus all",
    802: "the NVIDIA driver is not ready (CUDA error 802): start nvidia-fabricmanager, or wait until it is up",
    803: "the NVIDIA driver was updated under a running system (CUDA error 803): restart the machine",
    804: "CUDA's compatibility package does not serve this GPU (CUDA error 804): update the NVIDIA driver",
}
"""What the driver answers when it is to start → what that means."""

BRINGS = {
    "libnvinfer": "pip install tensorrt brings TensorRT",
    "libnvonnxparser": "pip install tensorrt brings TensorRT",
}
"""Beginning of a library's name → what brings it; all others come with :data:`CUDA_PACKAGES`."""

CUDA_PACKAGES = "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA and cuDNN"


def preload(provider: str) -> None:
    """Load the CUDA libraries that come as Python packages; the loader does not look where those are."""
    import onnxruntime as ort

    if provider in LIBRARIES:
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def why_not(provider: str) -> str | None:
    """Return why `provider` cannot come up on this machine, None where nothing is wrong or it needs no GPU.

    The driver is asked first: no library helps where it is missing.
    """
    if provider not in LIBRARIES or sys.platform != "linux":
        return None
    fault = driver_fault(built_for())
    if fault is not None:
        return f"{provider} cannot run: {fault}"
    library = missing_library(provider)
    return library and f"{provider} needs the library {library}, which is not installed here: {brings(library)}"


def missing_library(provider: str) -> str | None:
    """Return the name of a library that the provider's own needs and the loader does not find."""
    import onnxruntime as ort

    if provider in LIBRARIES and sys.platform == "linux":
        try:
            ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / LIBRARIES[provider]))
        except OSError as error:
            if "cannot open shared object file" in str(error):
                return str(error).split(":")[0]
    return None


def brings(library: str) -> str:
    """Return what installs a library."""
    return next((words for start, words in BRINGS.items() if library.startswith(start)), CUDA_PACKAGES)


def built_for() -> int | None:
    """Return the major version of CUDA that the installed ONNX Runtime is built for, None for a build without it."""
    from onnxruntime.capi import build_and_package_info as build

    version = str(getattr(build, "cuda_version", "")).partition(".")[0]
    return int(version) if version.isdigit() else None


def driver_fault(major: int | None, driver: Any = None) -> str | None:
    """Return what is wrong with this machine's NVIDIA driver for a program of CUDA `major`, None when nothing is.

    Takes 0.1 s and starts no context on the GPU. `driver` is the loaded library, for tests.
    """
    try:
        driver = driver or ctypes.CDLL(DRIVER)
    except OSError:
        return f"there is no NVIDIA driver here ({DRIVER}): nvidia-smi must work, and a container needs --gpus all"
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    has = version.value // 1000
    if major is not None and 0 < has < major:
        return f"the NVIDIA driver is of CUDA {has}, and CUDA {major} is to run on it: update the driver"
    status = driver.cuInit(0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if status == NO_GPU and visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU: unset it, or name one that nvidia-smi -L lists"
    if status:
        why = f"the NVIDIA driver does not start (CUDA error {status}): nvidia-smi may say why, or restart the machine"
        return _WORDS.get(status, why)
    return None
