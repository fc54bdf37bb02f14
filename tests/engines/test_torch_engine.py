"""torch as an engine agrees with the reference in every workload, and says what it has not or lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_bench import engines
from llama_bench.engines import Task, torch_engine
from llama_bench.errors import InputError, WorkError
from llama_bench.model import llama, reference
from llama_bench.model.inputs import make_inputs
from llama_bench.passes import checkpoint
from llama_bench.sweep import Model, Session, Target, Workload

CPU = Target(tag="bench_cpu", threads=1)
CUDA = Target(tag="bench_gpu", provider="CUDAExecutionProvider", threads=1)
SIZES = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
CACHED = Model.model_validate(SIZES | {"cache": True})
STATIC = Model.model_validate(SIZES | {"attention_bias": True, "mlp_bias": True, "attention_mask": True})
TIED = Model.model_validate(SIZES | {"cache": True, "tie_word_embeddings": True, "num_key_value_heads": 6})
MODELS = pytest.mark.parametrize("model", [CACHED, STATIC, TIED], ids=["cached", "static", "tied"])
PLAIN = ("torch-eager", "torch-sdpa")
ENGINES = pytest.mark.parametrize("engine", PLAIN)
PREFILL = Workload(kind="prefill", batch=2, sequence=9)
DECODE = Workload(kind="decode", batch=2, context=7)
GENERATE = Workload(kind="generate", batch=2, prompt=5, new_tokens=6)
NOWHERE = Path("no-such-folder")


def opened(
    engine: str, model: Model, workload: Workload, session: Session | None = None, folder: Path = NOWHERE
) -> engines.TimedSession:
    chosen = engines.settings(engine, session or Session(), CPU, 1)
    task = Task(model.model_dump(), workload.model_dump(), make_inputs(model, workload))
    return engines.open_session(folder, chosen, task)


def expected(model: Model, workload: Workload) -> dict[str, np.ndarray]:
    """Return the reference's outputs; of a decode with the cache after its step."""
    network, given = llama.build(model, workload), make_inputs(model, workload)
    if workload.kind == "generate":
        return reference.outputs(network, model, workload, given)
    return llama.run(network, model, workload, given)


def agree(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], bound: float) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        assert np.abs(found[name] - value).max() <= bound * np.abs(value).max(), name


@ENGINES
@MODELS
@pytest.mark.parametrize("io", ["device", "host"])
def test_a_prefill_gives_the_outputs_of_the_reference(engine: str, model: Model, io: str) -> None:
    session = opened(engine, model, PREFILL, Session.model_validate({"io": io}))
    with pytest.raises(WorkError, match="before the first run"):
        session.outputs()
    session.run()
    agree(session.outputs(), expected(model, PREFILL), 1e-4)
    assert session.providers == ["CPUExecutionProvider"]
    assert session.device_bytes() is None


@ENGINES
@pytest.mark.parametrize("outputs", ["last_logits", "hidden"])
def test_a_prefill_gives_what_the_workload_asks_for(engine: str, outputs: str) -> None:
    workload = PREFILL.model_copy(update={"outputs": outputs, "kv_out": False})
    model = STATIC.model_copy(update={"head": workload.head})
    session = opened(engine, model, workload)
    session.run()
    agree(session.outputs(), expected(model, workload), 1e-4)


@ENGINES
@pytest.mark.parametrize("model", [CACHED, TIED], ids=["grouped", "tied"])
def test_a_decode_step_is_the_reference_and_the_same_every_time(engine: str, model: Model) -> None:
    session = opened(engine, model, DECODE)
    wanted = expected(model, DECODE)
    for _ in range(3):
        session.run()
        agree(session.outputs(), wanted, 1e-4)
    assert session.token_seconds == ()


@ENGINES
def test_generated_tokens_are_the_reference_s_and_each_is_timed(engine: str) -> None:
    session = opened(engine, CACHED, GENERATE)
    for _ in range(2):
        session.run()
        agree(session.outputs(), expected(CACHED, GENERATE), 0)
        assert len(session.token_seconds) == 6
        assert min(session.token_seconds) > 0


@ENGINES
@pytest.mark.parametrize("workload", [PREFILL, DECODE, GENERATE], ids=lambda workload: workload.kind)
@pytest.mark.parametrize("length", [6, 9, 20])
def test_windows_are_scored_as_the_reference_does_and_leave_no_trace(
    engine: str, workload: Workload, length: int
) -> None:
    windows = np.random.default_rng(0).integers(0, 96, (3, length))
    session = opened(engine, CACHED, workload)
    session.run()
    before = session.outputs()
    found = list(session.score(windows))
    assert [logits.shape for logits in found] == [(length, 96)] * 3
    for logits, wanted in zip(found, reference.predict(llama.build(CACHED, workload), CACHED, windows), strict=True):
        assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()
    agree(session.outputs(), before, 0)
    session.run()
    agree(session.outputs(), before, 0)


def test_hidden_states_predict_no_text() -> None:
    workload = PREFILL.model_copy(update={"outputs": "hidden"})
    session = opened("torch-sdpa", STATIC.model_copy(update={"head": "none"}), workload)
    with pytest.raises(WorkError, match="hidden states, no logits"):
        list(session.score(np.zeros((1, 9), np.int64)))


@ENGINES
def test_padding_is_not_looked_at(engine: str) -> None:
    given = make_inputs(STATIC, PREFILL)
    given["attention_mask"][0, :3] = 0
    chosen = engines.settings(engine, Session(), CPU, 1)
    session = engines.open_session(NOWHERE, chosen, Task(STATIC.model_dump(), PREFILL.model_dump(), given))
    session.run()
    wanted = llama.run(llama.build(STATIC, PREFILL), STATIC, PREFILL, given)["logits"]
    found = session.outputs()["logits"]
    assert np.abs(found - wanted)[:, 3:].max() <= 1e-4 * np.abs(wanted).max()


@ENGINES
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("workload", [PREFILL, DECODE], ids=lambda workload: workload.kind)
def test_half_precision_is_near_the_reference_and_not_equal(engine: str, precision: str, workload: Workload) -> None:
    session = opened(engine, CACHED, workload, Session.model_validate({"precision": precision}))
    session.run()
    wanted = expected(CACHED, workload)
    agree(session.outputs(), wanted, 3e-2)
    assert np.abs(session.outputs()["logits"] - wanted["logits"]).max() > 1e-5
    assert session.outputs()["logits"].dtype == np.float32


def test_a_checkpoint_in_the_folder_is_taken_instead_of_the_model_s_weights(tmp_path: Path) -> None:
    smaller = CACHED.model_copy(update={"num_hidden_layers": 1, "intermediate_size": 64, "seed": 5})
    network = llama.build(smaller, PREFILL)
    checkpoint.save(tmp_path, smaller, {name: value for name, value in network.tensors()})
    session = opened("torch-sdpa", CACHED, PREFILL, folder=tmp_path)
    session.run()
    agree(session.outputs(), expected(smaller, PREFILL), 1e-4)


def test_the_threads_are_those_of_the_target() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        opened("torch-sdpa", CACHED, DECODE)
        assert torch.get_num_threads() == 1
        assert engines.settings("torch-sdpa", Session(), Target(tag="x"), 7)["intra_op_num_threads"] == 7
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"optimization_level": "basic"}, "optimization_level"),
        ({"provider_options": {"prefer_nhwc": True}}, "provider_options"),
        ({"config": {"session.x": "1"}}, "config"),
        ({"disabled_optimizers": ("MatMulAddFusion",)}, "disabled_optimizers"),
        ({"cuda_graph": True}, "cuda_graph"),
    ],
)
@pytest.mark.parametrize("engine", torch_engine.ATTENTION)
def test_options_of_onnx_runtime_are_refused_in_one_line(engine: str, options: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=f"'{key}' is ONNX Runtime's, and engine '{engine}'") as error:
        engines.settings(engine, Session.model_validate(options), CPU, 1)
    assert "\n" not in str(error.value)


def test_a_provider_that_torch_has_no_device_for_is_refused() -> None:
    with pytest.raises(InputError, match="no device for targets with provider 'CUDAExecutionProvide'; did you mean"):
        engines.settings("torch-sdpa", Session(), Target(tag="x", provider="CUDAExecutionProvide"), 1)


def test_what_shapes_execution_shows_in_the_settings() -> None:
    plain = engines.settings("torch-compile", Session(), CUDA, 1)
    assert engines.settings("torch-compile", Session(tf32=False), CUDA, 1) != plain
    assert engines.settings("torch-compile", Session(precision="bf16"), CUDA, 1) != plain
    on_cpu = engines.settings("torch-compile", Session(), CPU, 1)
    assert on_cpu["inductor"]["freezing"] is True
    assert engines.settings("torch-compile", Session(tf32=False), CPU, 1) == on_cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("engine", torch_engine.ATTENTION)
def test_a_machine_without_a_gpu_says_so(engine: str) -> None:
    chosen = engines.settings(engine, Session(), CUDA, 1)
    assert "needs a GPU, and torch" in (engines.missing(chosen) or "")
    task = Task(CACHED.model_dump(), DECODE.model_dump(), make_inputs(CACHED, DECODE))
    with pytest.raises(WorkError, match="needs a GPU"):
        engines.open_session(NOWHERE, chosen, task)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"CXX": "/no/such/compiler"}, "engine 'torch-compile' needs a C++ compiler (apt install g++, or CXX=…)"),
        ({}, "needs Python's header files (apt install python3-dev): /no/such/include/Python.h is not there"),
    ],
    ids=["compiler", "headers"],
)
def test_a_machine_without_what_compiling_needs_says_what(environment: dict[str, str], said: str) -> None:
    code = (
        "import sysconfig; from llama_bench import engines; from llama_bench.sweep import Session, Target\n"
        "sysconfig.get_path = lambda name: '/no/such/include'\n"
        "chosen = engines.settings('torch-compile', Session(), Target(tag='x'), 1)\n"
        "assert engines.missing(chosen | {'engine': 'torch-sdpa'}) is None\n"
        "print(engines.missing(chosen))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert said in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "precision", "bound"),
    [(PREFILL, "fp32", 1e-4), (DECODE, "bf16", 3e-2), (GENERATE, "fp32", 0)],
    ids=["prefill", "decode-bf16", "generate"],
)
def test_what_is_compiled_agrees_with_the_reference(
    workload: Workload, precision: str, bound: float, capfd: pytest.CaptureFixture[str]
) -> None:
    if why := torch_engine.missing_compiler("torch-compile"):
        pytest.skip(why)
    from torch._dynamo.utils import counters

    counters.clear()
    model = CACHED.model_copy(update={"num_hidden_layers": 1})
    session = opened("torch-compile", model, workload, Session.model_validate({"precision": precision}))
    if precision == "fp32" or torch.ops.mkldnn._is_mkldnn_bf16_supported():  # it packs bf16 with AVX-512 alone
        assert counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"] >= 5  # weights are frozen and packed
    with pytest.raises(WorkError, match="before the first run"):
        session.outputs()
    for _ in range(2):
        session.run()
        agree(session.outputs(), expected(model, workload), bound)
    windows = np.random.default_rng(0).integers(0, 96, (3, 6))
    wanted = reference.predict(llama.build(model, workload), model, windows)
    for logits, each in zip(session.score(windows), wanted, strict=True):
        assert np.abs(logits - each).max() <= max(bound, 1e-4) * np.abs(each).max()
    session.run()
    agree(session.outputs(), expected(model, workload), bound)
    assert "AUTOTUNE" not in capfd.readouterr().err
