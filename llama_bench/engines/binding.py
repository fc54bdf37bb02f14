"""Tensors of ONNX Runtime where a session wants them: on the host or on the GPU, in types that numpy may not have."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BFLOAT16 = 16

ELEMENT_TYPES = {
    "tensor(float)": 1,
    "tensor(uint8)": 2,
    "tensor(int8)": 3,
    "tensor(uint16)": 4,
    "tensor(int16)": 5,
    "tensor(int32)": 6,
    "tensor(int64)": 7,
    "tensor(bool)": 9,
    "tensor(float16)": 10,
    "tensor(double)": 11,
    "tensor(uint32)": 12,
    "tensor(uint64)": 13,
    "tensor(bfloat16)": BFLOAT16,
}
"""ONNX Runtime's name of a tensor type → number of the type in onnx.TensorProto."""

DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
    BFLOAT16: np.uint16,
}
"""Number of a type → numpy's type of that width; bfloat16, which numpy lacks, as its bits."""

HOST_PROVIDERS = ("CPUExecutionProvider", "OpenVINOExecutionProvider")
"""Providers whose tensors lie in the host's memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where tensors lie: `cpu` or `cuda`, and which of them."""

    device: str
    device_id: int = 0

    @property
    def on_host(self) -> bool:
        return self.device == "cpu"


HOST = Place("cpu")


def place_of(settings: Mapping[str, Any]) -> Place:
    """Return where a session with these settings has its inputs and outputs."""
    if settings["provider"] in HOST_PROVIDERS:
        return HOST
    return Place("cuda", int(settings["provider_options"].get("device_id", 0)))


def ortvalue(array: np.ndarray[Any, Any], place: Place) -> Any:
    """Return `array` as an OrtValue; on the host it *is* the array, which may be changed in place."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array, place.device, place.device_id)


def zeros(shape: Sequence[int], element_type: int, place: Place) -> Any:
    """Return an OrtValue of zeros, of any type in `DTYPES`."""
    from onnxruntime import OrtValue

    array = np.zeros(shape, DTYPES[element_type])
    if element_type != BFLOAT16:
        return ortvalue(array, place)
    value = OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
    if place.on_host or not array.size:
        return value
    there = OrtValue.ortvalue_from_shape_and_type(list(shape), BFLOAT16, place.device, place.device_id)
    there.update_inplace(value)
    return there


def on_host(value: Any) -> np.ndarray[Any, Any]:
    """Return an OrtValue as numpy; fp16 and bfloat16 become fp32, which holds them exactly.

    What lies on the host already may be the value's own memory: `copied` is what outlasts the next run.
    """
    from onnxruntime import OrtValue

    if value.element_type() != BFLOAT16:
        array: np.ndarray[Any, Any] = value.numpy()
        return widened(array)
    shape = list(value.shape())
    if value.device_name() != "cpu":
        here = OrtValue.ortvalue_from_shape_and_type(shape, BFLOAT16)
        here.update_inplace(value)
        value = here
    # numpy has no view of this type, so the bits are read where they lie
    lying = (ctypes.c_uint16 * int(np.prod(shape, dtype=np.int64))).from_address(value.data_ptr())
    bits = np.frombuffer(memoryview(lying), np.uint16) if len(lying) else np.empty(0, np.uint16)
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def copied(value: Any) -> np.ndarray[Any, Any]:
    """Return what `on_host` does, in memory of its own."""
    array = on_host(value)
    return array.copy() if array.ctypes.data == value.data_ptr() else array


def widened(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return fp16 as fp32, all else as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
