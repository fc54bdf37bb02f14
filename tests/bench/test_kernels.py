"""What a GPU does in a run, read from a profiler's trace: `kineto_trace.json` is made by hand (`kineto_trace.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_bench.bench import kernels, nvml
from llama_bench.bench.kernels import class_of, read, short
from llama_bench.errors import WorkError

TRACE = Path(__file__).with_name("kineto_trace.json")


@pytest.fixture
def events() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(TRACE.read_text(encoding="utf-8"))["traceEvents"]
    return found


def has_gpu() -> bool:
    return bool(nvml.facts()) and kernels.available()  # in this order: torch takes seconds to import


def test_a_run_is_what_lies_between_two_marks_and_numbers_are_means_of_runs(events: list[dict[str, Any]]) -> None:
    found = read(events, 2, 1e-4)
    assert (found.runs, found.wall_s) == (2, 1e-4)
    assert found.launches == 4
    assert [(one.name, one.kind, one.count) for one in found.kernels] == [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", "matmul", 2.0),
        ("flash_fwd_splitkv_kernel", "attention", 1.0),
        ("Memcpy DtoH (Device -> Pinned)", "copy", 0.5),
        ("SkipLayerNormKernelSmall", "norm", 1.0),
    ]
    assert [one.seconds for one in found.kernels] == pytest.approx([21e-6, 6e-6, 3e-6, 3e-6])


def test_what_two_streams_do_at_once_is_busy_once(events: list[dict[str, Any]]) -> None:
    found = read(events, 2, 1e-4)
    # 28 of 30 µs in the first run, and in the second 36 of 38: its copy begins 2 µs before the product ends
    assert found.busy_s == pytest.approx((28 + 36) / 2 * 1e-6)
    assert found.span_s == pytest.approx((30 + 38) / 2 * 1e-6)
    assert sum(one.seconds for one in found.kernels) > found.busy_s


def test_a_trace_that_lost_a_mark_is_not_believed(events: list[dict[str, Any]]) -> None:
    lost = [one for one in events if not (kernels.MARK in one["name"] and one["ts"] > 5142738431 + 2000)]
    with pytest.raises(WorkError, match="saw 2 of the 3 marks around 2 runs"):
        read(lost, 2, 1e-4)


def test_a_trace_without_the_sessions_kernels_is_not_a_fast_run(events: list[dict[str, Any]]) -> None:
    marks = [one for one in events if kernels.MARK in one["name"]]
    with pytest.raises(WorkError, match="no kernel"):
        read(marks, 2, 1e-4)


NAMES = [
    ("void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_f16_256x128_32x3_tn_align8>(P::Params)", "matmul",
     "Kernel2<cutlass_80_tensorop_f16_s16816gemm_f16_256x128_32x3_tn_align8>"),
    ("void onnxruntime::llm::kernels::fpA_intB_gemv::kernel<X, 1, true>(Y)", "matmul", "fpA_intB_gemv::kernel<X>"),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float, true>(Z)", "matmul", "splitKreduce_kernel"),
    ("void onnxruntime::contrib::cuda::MatMulFloatInt4Kernel<__half, 128, true>(__half*)", "matmul",
     "MatMulFloatInt4Kernel"),
    ("triton_tem_fused_mm_7", "matmul", "triton_tem_fused_mm_7"),
    ("triton_poi_fused__unsafe_view_mul_silu_split_5", "elementwise", "triton_poi_fused__unsafe_view_mul_silu_split_5"),
    ("triton_poi_fused__scaled_dot_product_cudnn_attention__unsafe_view_add_cat_mul_neg_2", "rotary and cache",
     "triton_poi_fused__scaled_dot_product_cudnn_attention__unsafe_view_add_cat_mul_neg_2"[:80]),
    ("triton_poi_fused_cat_split_3", "layout", "triton_poi_fused_cat_split_3"),
    # their template arguments name what products are made of
    ("void onnxruntime::flash::flash_fwd_kernel<Traits<128, cutlass::half_t>, true>(Params)", "attention",
     "flash_fwd_kernel"),
    ("fmha_cutlassF_f32_aligned_64x64_rf_sm80(AttentionKernel<float>::Params)", "attention",
     "fmha_cutlassF_f32_aligned_64x64_rf_sm80"),
    ("void onnxruntime::cuda::(anonymous namespace)::softmax_warp_forward<float, 10>(float*)", "attention",
     "softmax_warp_forward"),
    ("void onnxruntime::cuda::cuApplyLayerNorm<float, float, true>(float*)", "norm", "cuApplyLayerNorm"),
    ("triton_red_fused__to_copy_mean_rsqrt_2", "norm", "triton_red_fused__to_copy_mean_rsqrt_2"),
    ("void onnxruntime::contrib::cuda::UnpackRoPEAppend<__half>(x)", "rotary and cache", "UnpackRoPEAppend"),
    ("void onnxruntime::cuda::_GatherKernel<float>(long)", "embedding", "_GatherKernel"),
    ("void onnxruntime::contrib::cuda::Dequantize4BitsKernel<__half>(x)", "dequantise", "Dequantize4BitsKernel"),
    ("void onnxruntime::cuda::Transpose3DKernel<2>(x)", "layout", "Transpose3DKernel"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3>>(i)",
     "elementwise", "vectorized_elementwise_kernel<CUDAFunctor_add>"),
    ("void onnxruntime::cuda::_BinaryElementWise<float, OP_Mul<float>, 4>(int)", "elementwise", "_BinaryElementWise"),
    ("something_nobody_has_seen", "other", "something_nobody_has_seen"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "shown"), NAMES, ids=[shown for _, _, shown in NAMES])
def test_kernels_are_classed_by_their_whole_name_and_shown_by_its_core(name: str, kind: str, shown: str) -> None:
    assert (class_of(name), short(name)) == (kind, shown)


def test_a_long_name_is_cut() -> None:
    assert len(short("kernel_" + "x" * 500)) == kernels.LONGEST


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_the_profiler_does_not_begin() -> None:
    assert kernels.begin() is False


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="this machine has no GPU")
def test_products_on_a_real_gpu_are_counted_and_take_their_time() -> None:
    import torch

    class Products:
        def __init__(self) -> None:
            self.a = torch.randn(2048, 2048, device="cuda")

        def run(self) -> None:
            b = self.a
            for _ in range(3):
                b = self.a @ b
            b.cpu()
            torch.cuda.synchronize()

    assert kernels.begin()
    found = kernels.profile(Products())
    by_class = {kind: [one for one in found.kernels if one.kind == kind] for kind in ("matmul", "copy")}
    assert sum(one.count for one in by_class["matmul"]) >= 3
    assert sum(one.count for one in by_class["copy"]) >= 1
    assert 0 < sum(one.seconds for one in by_class["matmul"]) <= found.busy_s <= found.span_s
    assert found.span_s < 10 * found.wall_s
