"""Prefill, decode and generate through a KV cache are torch's, however the cache is kept; scoring leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from llama_bench import engines
from llama_bench.engines import TimedSession
from llama_bench.engines.binding import HOST, on_host, zeros
from llama_bench.engines.cached import SIDE_BY_SIDE
from llama_bench.engines.cached_graph import Feed, describe
from llama_bench.engines.steps import GrowingSteps, HostSteps, SharedSteps, make_steps
from llama_bench.errors import WorkError
from llama_bench.model.inputs import step_inputs
from llama_bench.sweep import Session, Target, Workload

CPU = Target(tag="bench_cpu", threads=1)
PREFILL = Workload(kind="prefill", batch=2, sequence=9)
LAST = Workload(kind="prefill", batch=2, sequence=9, outputs="last_logits")
DECODE = Workload(kind="decode", batch=2, context=7)
GENERATE = Workload(kind="generate", batch=2, prompt=5, new_tokens=6)


def opened(variant: Any, workload: Workload, **session: Any) -> TimedSession:
    chosen = engines.settings("onnxruntime", Session(**session), CPU, 1)
    return engines.open_session(variant.folder, chosen, variant.task(workload))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], bound: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=bound, atol=bound, err_msg=name)


@pytest.fixture(params=["growing", "shared", "growing on the host", "shared on the host"])
def kept(request: pytest.FixtureRequest, growing: Any, shared: Callable[..., Any]) -> tuple[Any, str]:
    """A graph with the logits of the last token and an `io`: every way of keeping the cache."""
    form, _, host = request.param.partition(" on the ")
    return growing if form == "growing" else shared(), host or "device"


@pytest.mark.parametrize("workload", [LAST, DECODE, GENERATE], ids=lambda workload: workload.kind)
def test_every_way_of_keeping_the_cache_gives_torchs_outputs_run_after_run(
    kept: tuple[Any, str], workload: Workload
) -> None:
    variant, io = kept
    session = opened(variant, workload, io=io)
    ways = {"growing": GrowingSteps, "shared": SharedSteps}
    form = ways["shared" if "seqlens_k" in session._graph.inputs else "growing"]
    assert isinstance(session._steps, HostSteps if io == "host" else form)
    with pytest.raises(WorkError, match="before the first run"):
        session.outputs()
    session.run()
    first = session.outputs()
    expected = variant.torch(workload)
    if workload.kind == "generate":
        np.testing.assert_array_equal(first["tokens"], expected["tokens"])
        assert first["tokens"].dtype == np.int64
    else:
        assert_close(first, expected)
    for _ in range(3):
        session.run()
        again = session.outputs()
        for name, values in first.items():
            np.testing.assert_array_equal(again[name], values, err_msg=name)


def test_all_logits_of_a_prefill_come_out_of_a_cached_graph(growing_all: Any, shared: Callable[..., Any]) -> None:
    for variant in (growing_all, shared(PREFILL)):
        session = opened(variant, PREFILL)
        session.run()
        assert_close(session.outputs(), variant.torch(PREFILL))


def test_one_prompt_token_and_one_new_one_are_enough(kept: tuple[Any, str]) -> None:
    variant, io = kept
    for workload in (
        Workload(kind="generate", batch=1, prompt=1, new_tokens=3),
        Workload(kind="generate", batch=3, prompt=4, new_tokens=1),
    ):
        session = opened(variant, workload, io=io)
        session.run()
        np.testing.assert_array_equal(session.outputs()["tokens"], variant.torch(workload)["tokens"])
        assert len(session.token_seconds) == workload.new_tokens


def test_the_seconds_of_the_tokens_add_up_to_the_runs(kept: tuple[Any, str]) -> None:
    variant, io = kept
    session = opened(variant, GENERATE, io=io)
    assert session.token_seconds == ()
    unseen = []
    for _ in range(15):
        begin = time.perf_counter()
        session.run()
        seconds = time.perf_counter() - begin
        assert len(session.token_seconds) == GENERATE.new_tokens
        assert min(session.token_seconds) > 0
        assert sum(session.token_seconds) <= seconds
        unseen.append(0.9 * seconds - sum(session.token_seconds))
    assert min(unseen) < 1e-3  # the core may be taken away between the two clocks, but not every time
    assert opened(variant, DECODE, io=io).token_seconds == ()


def test_of_equal_logits_the_first_token_is_taken(growing: Any, tmp_path: Path) -> None:
    model = onnx.load(growing.folder / "model.onnx")
    name = model.graph.output[0].name
    for node in model.graph.node:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = "real"
    zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), "nothing")
    model.graph.initializer.append(zero)
    model.graph.node.append(onnx.helper.make_node("Mul", ["real", "nothing"], [name]))
    onnx.save(model, tmp_path / "model.onnx")
    session = opened(type(growing)(tmp_path, growing.network, growing.model), GENERATE)
    session.run()
    assert (session.outputs()["tokens"] == 0).all()


@pytest.mark.parametrize("workload", [LAST, DECODE, GENERATE], ids=lambda workload: workload.kind)
def test_scoring_gives_torchs_logits_and_leaves_no_trace(kept: tuple[Any, str], workload: Workload) -> None:
    variant, io = kept
    session = opened(variant, workload, io=io)
    session.run()
    before = session.outputs()
    windows = np.random.default_rng(5).integers(0, 128, size=(SIDE_BY_SIDE + 3, 13))
    scored = session.score(windows)
    expected = variant.logits(windows)
    for i, logits in enumerate(scored):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[i], rtol=1e-5, atol=1e-5)
        if i in (0, SIDE_BY_SIDE):  # in the middle of it, too
            session.run()
            for name, values in session.outputs().items():
                np.testing.assert_array_equal(values, before[name])
    assert i == len(windows) - 1
    session.run()
    for name, values in session.outputs().items():
        np.testing.assert_array_equal(values, before[name])


def test_a_window_of_a_graph_with_all_logits_is_one_step_of_any_length(
    growing_all: Any, shared: Callable[..., Any]
) -> None:
    for variant in (growing_all, shared(PREFILL)):
        session = opened(variant, PREFILL)
        session.run()
        for length in (2, 9, 30):
            windows = np.random.default_rng(length).integers(0, 128, size=(3, length))
            found = np.stack(list(session.score(windows)))
            np.testing.assert_allclose(found, variant.logits(windows), rtol=1e-5, atol=1e-5)
        assert_close(session.outputs(), variant.torch(PREFILL))


@pytest.mark.parametrize(("cache", "bound"), [(TensorProto.FLOAT16, 2e-3), (TensorProto.BFLOAT16, 2e-2)])
def test_a_cache_in_half_precision_comes_out_as_fp32(shared: Callable[..., Any], cache: int, bound: float) -> None:
    variant = shared(cache=cache, logits=cache)
    session = opened(variant, DECODE)
    session.run()
    found = session.outputs()
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    assert_close(found, variant.torch(DECODE), bound)
    windows = np.random.default_rng(1).integers(0, 128, size=(2, 6))
    np.testing.assert_allclose(list(session.score(windows)), variant.logits(windows), rtol=bound, atol=bound)


def test_a_bfloat16_cache_on_the_host_is_refused_in_words(shared: Callable[..., Any]) -> None:
    with pytest.raises(WorkError, match=r"numpy has no bfloat16, .*io: device"):
        opened(shared(cache=TensorProto.BFLOAT16), DECODE, io="host")


def test_the_shared_cache_is_one_buffer_of_the_longest_text_bound_once(shared: Callable[..., Any]) -> None:
    session = opened(shared(), GENERATE)
    steps = session._steps
    addresses = [buffer.data_ptr() for buffer in steps._buffers]
    assert [list(buffer.shape()) for buffer in steps._buffers] == [[2, 2, GENERATE.longest, 16]] * 4
    session.run()
    bound = {new: id(binding) for new, (_, binding, _) in steps._bound.items()}
    session.run()
    assert {new: id(binding) for new, (_, binding, _) in steps._bound.items()} == bound
    assert sorted(bound) == [1, GENERATE.prompt]
    outputs = steps._bound[1][1].get_outputs()
    assert [value.data_ptr() for value in outputs[1:]] == addresses


@pytest.mark.parametrize("io", ["device", "host"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_cache_comes_out_as_far_as_it_is_filled(
    growing: Any, shared: Callable[..., Any], io: str, in_place: bool
) -> None:
    tokens = np.random.default_rng(2).integers(0, 128, size=(2, 6))
    found = []
    for variant in (growing, shared()):
        # a plugin provider's session: what is bound is copied, so past and present are two
        graph = replace(opened(variant, DECODE)._graph, in_place=in_place)
        steps = make_steps(graph, io, 2, 20)
        steps.step(tokens[:, :4])
        state = steps.state()
        steps.step(tokens[:, 4:5])
        steps.restore(state)
        for t in (4, 5):
            steps.step(tokens[:, t : t + 1])
        assert steps.filled == 6
        assert {values.shape for values in steps.cache().values()} == {(2, 2, 6, 16)}
        found.append({**steps.cache(), "logits": steps.output().copy()})
    assert_close(found[1], found[0])
    np.testing.assert_allclose(found[0]["logits"][:, 0], growing.logits(tokens)[:, -1], rtol=1e-5, atol=1e-5)


def test_what_is_fed_is_what_the_model_says_a_step_takes(growing: Any, shared: Callable[..., Any]) -> None:
    for variant in (growing, shared()):
        graph = opened(variant, DECODE)._graph
        feed = Feed(graph, 2, 3)
        tokens = np.array([[5, 6, 7], [8, 9, 10]])
        for past in (0, 11):
            feed.set(tokens, past, past + 3)
            expected = step_inputs(tokens, past)
            assert set(feed.arrays) == set(graph.inputs) <= set(expected)
            for name, array in feed.arrays.items():
                np.testing.assert_array_equal(array, expected[name])
                assert array.dtype == expected[name].dtype
                np.testing.assert_array_equal(feed.values[name].numpy(), array)


def test_the_attention_may_be_told_the_length_of_the_buffer_in_every_step(shared: Callable[..., Any]) -> None:
    # what replaying a CUDA graph rests on: that number is captured, and seqlens_k says how far the cache is filled
    variant = shared()
    session = opened(variant, DECODE)
    steps = session._steps
    steps._longest, steps._captured = DECODE.longest, 1
    object.__setattr__(steps._graph, "replays", True)
    feed, binding, _ = steps._bind(1)
    steps._bound[1] = (feed, binding, None)
    session.run()
    assert int(feed.arrays["total_sequence_length"]) == DECODE.longest
    assert_close(session.outputs(), variant.torch(DECODE))


def test_a_cuda_graph_with_a_growing_cache_is_refused_with_the_reason(growing: Any) -> None:
    chosen = engines.settings("onnxruntime", Session(), CPU, 1)
    chosen["provider_options"] = {"enable_cuda_graph": "1"}
    with pytest.raises(WorkError, match="a CUDA graph replays fixed addresses") as error:
        describe(opened(growing, DECODE).session, chosen, HOST, 1)
    assert "\n" not in str(error.value)


def changed(variant: Any, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Any:
    model = onnx.load(variant.folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    return type(variant)(folder, variant.network, variant.model)


def test_a_graph_that_cannot_be_fed_names_the_input(shared: Callable[..., Any], tmp_path: Path) -> None:
    def ask(model: onnx.ModelProto) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("temperature", TensorProto.FLOAT, [1]))
        model.graph.node.append(onnx.helper.make_node("Identity", ["temperature"], ["unread"]))

    with pytest.raises(WorkError, match="wants an input 'temperature' that the workload does not give"):
        opened(changed(shared(), tmp_path, ask), DECODE)


def test_a_cache_that_does_not_come_out_again_is_named(shared: Callable[..., Any], tmp_path: Path) -> None:
    def drop(model: onnx.ModelProto) -> None:
        del model.graph.output[-1]

    with pytest.raises(WorkError, match=r"takes 'past\.1\.value' and does not give 'present\.1\.value'"):
        opened(changed(shared(), tmp_path, drop), DECODE)


def test_a_failure_while_running_is_one_line(growing: Any) -> None:
    session = opened(growing, DECODE)
    session._first = np.full((2, 1), 4096)  # no such token
    with pytest.raises(WorkError, match="ONNX Runtime failed while running: ") as error:
        session.run()
    assert "\n" not in str(error.value)


def test_a_step_needs_a_cache_and_scoring_needs_logits(static: Any, growing_all: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="decode needs a graph with a KV cache"):
        opened(type(static)(static.folder, static.network, growing_all.model), DECODE)

    def rename(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Identity", ["logits"], ["hidden_states"]))
        model.graph.output[0].name = "hidden_states"

    session = opened(changed(growing_all, tmp_path, rename), PREFILL)
    with pytest.raises(WorkError, match="the graph gives hidden_states, no logits"):
        next(session.score(np.zeros((1, 4), np.int64)))


@pytest.mark.parametrize("element_type", [1, 2, 3, 10, 16])
def test_zeros_of_every_type_of_cache_are_zeros(element_type: int) -> None:
    value = zeros([2, 3], element_type, HOST)
    assert value.element_type() == element_type
    assert not on_host(value).any()
    assert zeros([1, 2, 0, 4], element_type, HOST).shape() == [1, 2, 0, 4]
    assert on_host(zeros([1, 2, 0, 4], element_type, HOST)).shape == (1, 2, 0, 4)
