"""Numbers in few bits: how far each method is from the weights, and how they are packed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from llama_bench.errors import WorkError
from llama_bench.passes.quantize import blocks
from llama_bench.passes.quantize.blocks import Form, Packed
from llama_bench.passes.quantize.gptq import gptq, hessian

INPUTS, OUTPUTS = 256, 48
RNG = np.random.default_rng(0)
WEIGHTS = (RNG.standard_t(5, size=(INPUTS, OUTPUTS)) * 0.02).astype(np.float32)
# activations as a trained network has them: correlated, and of very different sizes
MIXED = RNG.normal(size=(INPUTS, INPUTS)) * np.exp(RNG.normal(size=(INPUTS, 1)))
SEEN = (RNG.normal(size=(1000, INPUTS)) @ MIXED * 0.05).astype(np.float32)

FORMS = [Form(bits, size, symmetric) for bits in (2, 4, 8) for size in (16, 64, 256) for symmetric in (False, True)]


def unpacked(packed: Packed, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights [K, N] that `packed` stands for, and their steps [K, N]."""

    def numbers(array: np.ndarray, count: int) -> np.ndarray:
        bits = np.unpackbits(array.reshape(len(array), -1), axis=1, bitorder="little")
        return (bits[:, : count * form.bits].reshape(len(array), count, form.bits) << np.arange(form.bits)).sum(-1)

    outputs, count = packed.scales.shape
    q = numbers(packed.weight, count * form.block_size).reshape(outputs, count, form.block_size)
    points = np.full((outputs, count), form.middle)
    if packed.zero_points is not None:
        points = numbers(packed.zero_points, count)
    weights = (q - points[..., None]) * packed.scales[..., None]
    if packed.offsets is not None:
        weights = weights + packed.offsets[..., None]
    steps = np.broadcast_to(np.abs(packed.scales)[..., None], weights.shape)
    return weights.reshape(outputs, -1).T, steps.reshape(outputs, -1).T


def error(packed: Packed, form: Form) -> float:
    return float(np.linalg.norm(unpacked(packed, form)[0] - WEIGHTS))


def output_error(packed: Packed, form: Form) -> float:
    return float(np.linalg.norm(SEEN @ (unpacked(packed, form)[0] - WEIGHTS)))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rounding_is_within_half_a_step(form: Form) -> None:
    packed = blocks.rtn(WEIGHTS, form)
    weights, steps = unpacked(packed, form)
    assert (packed.zero_points is None) == form.symmetric
    most = 1.0 if form.symmetric else 0.5  # symmetric numbers reach one step less far on one side of zero
    assert (np.abs(weights - WEIGHTS) <= most * steps * 1.001).all()


@pytest.mark.parametrize("form", [form for form in FORMS if not form.symmetric], ids=str)
def test_offsets_round_within_half_a_step_and_weights_so_made_come_back_as_they_were(form: Form) -> None:
    packed = blocks.offset(WEIGHTS, form)
    weights, steps = unpacked(packed, form)
    assert packed.zero_points is None
    assert (np.abs(weights - WEIGHTS) <= 0.5 * steps * 1.001).all()
    made = weights.astype(np.float32)
    again = unpacked(blocks.offset(made, form), form)[0]
    assert np.abs(again - made).max() < 1e-6 * np.abs(made).max()
    assert np.abs(unpacked(blocks.rtn(made, form), form)[0] - made).max() > 1e-3 * np.abs(made).max()


def test_a_block_of_equal_weights_is_its_offset() -> None:
    equal, form = np.full((32, 300), 0.25, np.float32), Form(4, 16, symmetric=False)
    assert (unpacked(blocks.offset(equal, form), form)[0] == 0.25).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_half_quadratic_quantisation_is_nearer_than_rounding(form: Form) -> None:
    assert error(blocks.hqq(WEIGHTS, form), form) < error(blocks.rtn(WEIGHTS, form), form)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gptq_changes_the_outputs_on_what_it_saw_much_less_than_rounding(form: Form) -> None:
    learned = gptq(WEIGHTS, hessian([SEEN[:400], SEEN[400:]]), form)
    assert output_error(learned, form) < 0.6 * output_error(blocks.rtn(WEIGHTS, form), form)


@pytest.mark.parametrize(("bits", "most"), [(2, 0.95), (4, 1.1), (8, 1.1)])
def test_k_quant_is_about_as_near_as_rounding(bits: int, most: float) -> None:
    form = Form(bits, 32, symmetric=False)
    assert error(blocks.k_quant(WEIGHTS, form), form) < most * error(blocks.rtn(WEIGHTS, form), form)


@pytest.mark.parametrize("method", [blocks.rtn, blocks.hqq, blocks.k_quant])
def test_a_block_of_zeros_stays_zero(method: Callable[..., Packed]) -> None:
    weights = WEIGHTS.copy()
    weights[:64, :5] = 0
    form = Form(4, 32, symmetric=False)
    made = unpacked(method(weights, form), form)[0]
    assert (made[:64, :5] == 0).all()
    assert np.isfinite(made).all()


def test_gptq_leaves_weights_of_silent_inputs_as_they_are() -> None:
    seen = SEEN.copy()
    seen[:, 10:20] = 0
    form = Form(8, 64, symmetric=False)
    weights, steps = unpacked(gptq(WEIGHTS, hessian([seen]), form), form)
    assert (np.abs(weights - WEIGHTS)[10:20] <= 0.5 * steps[10:20] * 1.001).all()


def test_gptq_says_so_when_what_it_saw_is_no_number() -> None:
    seen = SEEN.copy()
    seen[0, 0] = np.nan
    with pytest.raises(WorkError, match="cannot be inverted: calibrate on more or other text"):
        gptq(WEIGHTS, hessian([seen]), Form(4, 32, symmetric=False))


def test_many_outputs_are_worked_on_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(4, 32, symmetric=False)
    whole = blocks.hqq(WEIGHTS, form)
    monkeypatch.setattr(blocks, "OUTPUTS_AT_ONCE", 7)
    parts = blocks.hqq(WEIGHTS, form)
    assert np.array_equal(whole.weight, parts.weight)
    assert np.array_equal(whole.zero_points, parts.zero_points)  # type: ignore[arg-type]
