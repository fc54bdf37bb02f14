from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from llama_bench.bench import race, roofline, roofline_cpu, roofline_cuda
from llama_bench.bench.race import Ceiling, Run, Shape, Way, fastest
from llama_bench.engines import onnxruntime as engine
from llama_bench.sweep import Session, Target

SMALL: tuple[Shape, ...] = ((2, 2, 2), (4, 4, 4), (8, 8, 8))


class Clock:
    """A clock on which looking at it takes a moment, and nothing else any time: no busy machine moves it."""

    now_s = 0.0

    def perf_counter(self) -> float:
        self.now_s += 1e-4
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What a race goes by."""
    found = Clock()
    monkeypatch.setattr(race, "time", found)
    return found


def steady(rate: float, log: list[Shape] | None = None) -> Callable[[Shape], Run]:
    """A way that does `rate` operations or bytes a second at any shape, without taking the time."""

    def make(shape: Shape) -> Run:
        if log is not None:
            log.append(shape)
        work = 2 * np.prod(shape) if len(shape) == 3 else shape[0]
        return lambda: float(work / rate)

    return make


def absent(_: Shape) -> Run:
    raise RuntimeError("no kernel for this type")


@pytest.fixture(scope="module")
def measured() -> list[Ceiling]:
    return roofline.measure("CPUExecutionProvider", 2)


@pytest.mark.xdist_group("alone")  # what the machine can do is measured while nothing else runs
def test_a_cpu_has_at_least_an_fp32_product_and_what_its_memory_reads_and_copies(
    measured: list[Ceiling],
) -> None:
    ceilings = {(one.what, one.dtype): one for one in measured}
    assert {("matmul", "fp32"), ("read", ""), ("copy", "")} <= set(ceilings)
    assert all(one.per_second > 0 for one in measured)
    assert len(ceilings) == len(measured)
    assert "×" in ceilings["matmul", "fp32"].how
    assert "256×256×256" not in ceilings["matmul", "fp32"].how  # that was the trial
    assert "MiB" in ceilings["read", ""].how


@pytest.mark.xdist_group("alone")
def test_a_simple_product_of_numpy_is_not_above_the_ceiling(measured: list[Ceiling]) -> None:
    a = np.ones((1024, 1024), dtype=np.float32)
    for _ in range(4):  # others may have had the machine while the ceiling was measured
        ceiling = next(one.per_second for one in measured if one.dtype == "fp32")
        begin = time.perf_counter()
        for _ in range(5):
            a @ a
        simple = 5 * 2 * 1024**3 / (time.perf_counter() - begin)
        if ceiling >= 0.9 * simple:
            return
        measured = roofline.measure("CPUExecutionProvider", 2)
    pytest.fail(f"a simple product does {simple:.3g} operations a second, the ceiling is {ceiling:.3g}")


def test_measuring_ends_soon_and_puts_torchs_threads_back() -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []

    def make(shape: Shape) -> Run:
        seen.append(torch.get_num_threads())
        return lambda: 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline_cpu, "ways", lambda threads: [Way("matmul", "fp32", "way", make)])
        patch.setattr(roofline_cpu, "SECONDS", 0.1)
        begin = time.perf_counter()
        roofline_cpu.measure(before + 1)
        assert time.perf_counter() - begin < 120  # others may have the machine for a while
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_the_fastest_way_is_the_ceiling_and_says_which_it_was(clock: Clock) -> None:
    ways = [Way("matmul", "fp32", "slow", steady(1e9)), Way("matmul", "fp32", "fast", steady(2e9))]
    [found] = fastest(ways, SMALL, 0, 0.2)
    assert found == Ceiling("matmul", "fp32", pytest.approx(2e9), "fast, 4×4×4")


def test_a_precision_without_a_kernel_is_left_out_and_not_zero(clock: Clock) -> None:
    ways = [Way("matmul", "fp32", "way", steady(1e9)), Way("matmul", "fp8", "way", absent)]
    assert [one.dtype for one in fastest(ways, SMALL, 0, 0.1)] == ["fp32"]


def test_a_precision_that_is_emulated_is_left_out_after_its_first_small_trial(clock: Clock) -> None:
    log: list[Shape] = []
    ways = [Way("matmul", "fp32", "way", steady(1e9)), Way("matmul", "fp16", "loop", steady(0.05e9, log))]
    assert [one.dtype for one in fastest(ways, SMALL, 0, 0.1)] == ["fp32"]
    assert set(log) == {(2, 2, 2)}
    kernel = [ways[0], Way("matmul", "fp16", "kernel", steady(0.5e9))]
    assert [one.dtype for one in fastest(kernel, SMALL, 0, 0.1)] == ["fp32", "fp16"]


def test_a_hopeless_way_is_never_tried_at_a_large_shape(clock: Clock) -> None:
    log: list[Shape] = []
    ways = [Way("matmul", "fp32", "loop", steady(0.9e8, log)), Way("matmul", "fp32", "kernel", steady(1e9))]
    fastest(ways, SMALL, 0, 0.1)
    assert set(log) == {(2, 2, 2)}


def test_what_fits_into_a_cache_is_no_memory(clock: Clock) -> None:
    def make(shape: Shape) -> Run:
        return lambda: shape[0] / (1e12 if shape[0] < 1000 else 1e9)

    [found] = fastest([Way("read", "", "way", make)], SMALL, 2**20, 0.1)
    assert found == Ceiling("read", "", pytest.approx(1e9), "way, 1 MiB")


def test_a_moment_in_which_something_else_ran_lowers_no_ceiling(clock: Clock) -> None:
    def make(shape: Shape) -> Run:
        # slow at first, as if a neighbour were busy
        return lambda: float(2 * np.prod(shape)) / (1e9 if clock.now_s > 0.1 else 0.3e9)

    [found] = fastest([Way("matmul", "fp32", "way", make)], SMALL, 0, 0.3)
    assert found.per_second == pytest.approx(1e9)


def test_a_provider_that_nothing_here_can_measure_has_no_ceilings() -> None:
    assert roofline.measure("CoreMLExecutionProvider", 2) == []


def test_a_machine_without_a_gpu_has_no_ceilings_of_one() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert roofline.measure("CUDAExecutionProvider", 2) == []


@pytest.mark.gpu
def test_a_gpu_has_ceilings_and_its_faster_precisions_are_faster() -> None:
    found = {(one.what, one.dtype): one.per_second for one in roofline.measure("CUDAExecutionProvider", 1)}
    assert {("matmul", "fp32"), ("matmul", "fp16"), ("read", ""), ("copy", "")} <= set(found)
    assert found["matmul", "fp16"] > found["matmul", "fp32"]


def test_numpy_is_no_way_for_another_number_of_threads_than_it_takes() -> None:
    from llama_bench.bench import cpu

    with pytest.raises(ValueError, match="threads"):
        roofline_cpu._numpy_product(len(cpu.allowed()) + 1, (8, 8, 8))
    assert roofline_cpu._numpy_product(len(cpu.allowed()), (8, 8, 8))() > 0


@pytest.mark.parametrize(
    ("op", "left", "right"), [("MatMul", "float32", "float32"), ("MatMulInteger", "uint8", "int8")]
)
def test_onnx_runtime_multiplies_in_a_session_set_up_like_an_arms(op: str, left: str, right: str) -> None:
    settings = engine.settings("onnxruntime", Session(), Target(tag="bench_cpu", threads=1), 1)
    run = roofline_cpu.ort_product(settings, op, left, right, (16, 32, 8))
    assert run() > 0


def test_a_session_that_has_no_kernel_is_an_error_and_no_slow_way() -> None:
    settings = engine.settings("onnxruntime", Session(), Target(tag="bench_cpu", threads=1), 1)
    with pytest.raises(Exception, match="MatMulInteger"):
        roofline_cpu.ort_product(settings, "MatMulInteger", "float32", "float32", (16, 32, 8))


@pytest.mark.parametrize("op", ["ReduceMax", "Neg"])
def test_the_graphs_that_read_and_copy_on_a_gpu_are_ones_that_onnx_runtime_runs(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = engine.settings("onnxruntime", Session(), Target(tag="bench_cpu", threads=1), 1)
    monkeypatch.setattr(roofline_cuda, "_settings", lambda tf32: settings)
    assert roofline_cuda._ort_bytes(op, (2**16,))() > 0
