"""Settings are explicit and comparable; a session runs where it should, on bound buffers, or says why it cannot."""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from llama_bench import engines
from llama_bench.bench import nvml
from llama_bench.engines import Task
from llama_bench.engines.onnxruntime import check_installation, missing, session_options, settings_sha256
from llama_bench.engines.static import StaticSession
from llama_bench.errors import InputError, WorkError
from llama_bench.sweep import Session, Target

CPU = Target(tag="bench_cpu", threads=2)
CUDA = Target(tag="bench_gpu", provider="CUDAExecutionProvider")
X = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
W = np.random.default_rng(2).normal(size=(16, 16)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in a folder: y = x·w + 1, and the rows of y that `keep` says."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        tiny (float[4,16] x, int64[2] keep) => (float[4,16] y, float[2,16] kept) {
            product = MatMul(x, w)
            one = Constant<value = float {1.0}>()
            y = Add(product, one)
            kept = Gather<axis = 0>(y, keep)
        }
        """
    )
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    return tmp_path


def inputs() -> dict[str, np.ndarray]:
    return {"x": X, "keep": np.array([3, 1])}


def settings(session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    return engines.settings("onnxruntime", session, target, physical_cores)


def opened(folder: Path, chosen: dict[str, Any], given: dict[str, np.ndarray]) -> StaticSession:
    session = engines.open_session(folder, chosen, Task({"cache": False}, {"kind": "prefill"}, given))
    assert isinstance(session, StaticSession)
    return session


@pytest.mark.parametrize("target", [CPU, CUDA])
def test_equal_arms_have_equal_settings_that_json_can_hold(target: Target) -> None:
    first, second = settings(Session(), target, 8), settings(Session(), target, 8)
    assert first == second == json.loads(json.dumps(first))
    assert settings_sha256(first) == settings_sha256(dict(reversed(list(second.items()))))
    assert first["intra_op_num_threads"] == (target.threads or 8)
    assert first["config"]["session.force_spinning_stop"] == "1"


@pytest.mark.parametrize(
    "session",
    [
        Session(tf32=False),
        Session(cuda_graph=True),
        Session(io="host"),
        Session(optimization_level="disable"),
        Session(provider_options={"prefer_nhwc": True}),
        Session(config={"session.intra_op.allow_spinning": "0"}),
        Session(disabled_optimizers=("ConstantFolding",)),
    ],
)
def test_every_option_of_an_idea_shows_in_the_settings_on_cuda(session: Session) -> None:
    plain = settings(Session(), CUDA, 8)
    assert settings_sha256(settings(session, CUDA, 8)) != settings_sha256(plain)
    assert settings_sha256(settings(Session(), CUDA, 4)) != settings_sha256(plain)


def test_options_that_only_cuda_has_make_no_difference_on_a_cpu() -> None:
    assert settings(Session(tf32=False, cuda_graph=True), CPU, 8) == settings(Session(), CPU, 8)
    assert settings(Session(), CPU, 8)["provider_options"] == {}


def test_the_same_option_written_out_is_the_same_setting() -> None:
    assert settings(Session(provider_options={"prefer_nhwc": False}), CUDA, 8) == settings(Session(), CUDA, 8)
    with pytest.raises(InputError, match="'use_tf32' has a key of its own in a recipe's session: 'tf32'"):
        settings(Session(provider_options={"use_tf32": False}), CUDA, 8)


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "layout", "all"])
def test_onnx_runtime_gets_what_the_settings_say(level: str) -> None:
    chosen = settings(Session(optimization_level=level, config={"session.use_env_allocators": "0"}), CPU, 8)
    options = session_options(chosen)
    assert level in options.graph_optimization_level.name.lower()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    for key, value in chosen["config"].items():
        assert options.get_session_config_entry(key) == value


@pytest.mark.parametrize("io", ["device", "host"])
def test_a_session_gives_the_right_outputs_of_its_last_run(folder: Path, io: str) -> None:
    given = {"x": X.copy(), "keep": np.array([3, 1])}
    session = opened(folder, settings(Session(io=io), CPU, 1), {**given, "unused": X})
    assert session.providers == ["CPUExecutionProvider"]
    with pytest.raises(WorkError, match="before the first run"):
        session.outputs()
    session.run()
    first = session.outputs()
    assert list(first) == ["y", "kept"]
    np.testing.assert_allclose(first["y"], X @ W + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first["kept"], first["y"][[3, 1]])

    kept = first["y"].copy()
    session._feed["x"][...] = 0  # on the CPU what is bound is the session's own copy of the input
    session.run()
    np.testing.assert_array_equal(first["y"], kept)
    assert (session.outputs()["y"] == 1).all()
    np.testing.assert_array_equal(given["x"], X)


def test_bound_outputs_are_written_into_the_same_memory_in_every_run(folder: Path) -> None:
    session = opened(folder, settings(Session(), CPU, 1), inputs())
    values = []  # held, so that a new buffer could not have an old one's address
    for _ in range(3):
        session.run()
        values.append(list(session._binding.get_outputs()))
    first, *others = [[value.data_ptr() for value in run] for run in values]
    assert others == [first, first]


def test_shapes_that_the_graph_does_not_say_are_bound_after_a_first_run(folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = f"rows_of_{value.name}"
    onnx.save_model(model, str(folder / "model.onnx"))
    session = opened(folder, settings(Session(), CPU, 1), inputs())
    session.run()
    before = list(session._binding.get_outputs())
    session.run()
    assert [value.data_ptr() for value in before] == [value.data_ptr() for value in session._binding.get_outputs()]
    np.testing.assert_allclose(session.outputs()["y"], X @ W + 1, rtol=1e-5, atol=1e-5)


def test_a_recipes_variables_are_set_before_its_session_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_NOBODYS", "0")  # put back after the test
    seen: list[str] = []
    make = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: seen.append(os.environ["ORT_NOBODYS"]) or make(*a, **k)
    )
    plain, chosen = (settings(Session(environment=said), CPU, 4) for said in ({}, {"ORT_NOBODYS": "1"}))
    opened(folder, plain, inputs())
    opened(folder, chosen, inputs())
    assert seen == ["0", "1"]
    assert settings_sha256(plain) != settings_sha256(chosen)


def test_an_input_that_is_not_given_is_named(folder: Path) -> None:
    with pytest.raises(WorkError, match="wants an input 'keep'"):
        opened(folder, settings(Session(), CPU, 1), {"x": X})


def test_a_model_that_cannot_be_loaded_or_run_is_an_error_of_one_line(folder: Path) -> None:
    given = inputs() | {"keep": np.array([3, 99])}
    with pytest.raises(WorkError, match="failed while running") as error:
        opened(folder, settings(Session(io="host"), CPU, 1), given).run()
    assert "\n" not in str(error.value)
    (folder / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(WorkError, match=r"failed to load .*model\.onnx") as error:
        opened(folder, settings(Session(), CPU, 1), given)
    assert "\n" not in str(error.value)


def test_a_provider_that_this_build_lacks_is_named(folder: Path) -> None:
    target = Target(tag="bench_cpu", provider="NoSuchExecutionProvider")
    with pytest.raises(WorkError, match="this build of ONNX Runtime has no NoSuchExecutionProvider"):
        opened(folder, settings(Session(), target, 1), inputs())


@pytest.mark.skipif(nvml.absent() is None, reason="this machine has a GPU")
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="a CPU build")
def test_a_gpu_session_without_a_gpu_says_what_is_missing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkError, match="fell back to CPUExecutionProvider: CUDAExecutionProvider ") as error:
        opened(folder, settings(Session(), CUDA, 1), inputs())
    assert re.search("needs the library lib|cannot run: |found no device", str(error.value))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("word", "number"), [("bfloat16", 16), ("float16", 10)])
def test_outputs_in_half_precision_come_out_as_fp32(tmp_path: Path, word: str, number: int) -> None:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => ({word}[2] y) {{ y = Cast <to = {number}> (x) }}'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    session = opened(tmp_path, settings(Session(), CPU, 1), {"x": np.array([1.5, -3e-5], dtype=np.float32)})
    session.run()
    found = session.outputs()["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [1.5, -3e-5], rtol=1e-2)


def test_a_precision_is_a_matter_of_passes() -> None:
    with pytest.raises(InputError, match=r"precision 'bf16' is not for engine 'onnxruntime'.*precision: bf16"):
        settings(Session(precision="bf16"), CPU, 1)


def test_optimisers_that_do_not_exist_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        InputError, match=r"no optimiser 'QuickGeluFusoin' to disable; did you mean 'QuickGeluFusion'\?"
    ):
        settings(Session(disabled_optimizers=("QuickGeluFusoin",)), CPU, 1)
    chosen = settings(Session(disabled_optimizers=("QuickGeluFusion", "ConstantFolding", "QuickGeluFusion")), CPU, 1)
    assert chosen["disabled_optimizers"] == ["ConstantFolding", "QuickGeluFusion"]


def test_what_is_missing_is_the_build_or_a_library() -> None:
    assert missing(settings(Session(), CPU, 1)) is None
    other = settings(Session(), Target(tag="bench", provider="QNNExecutionProvider"), 1)
    assert engines.missing(other).startswith("this build of ONNX Runtime has no QNNExecutionProvider")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and nvml.absent() is not None:
        why = missing(settings(Session(), CUDA, 1))
        assert why is None or re.match("CUDAExecutionProvider (needs the library lib|cannot run: )", why)


def test_memory_on_the_gpu_is_nobodys_on_a_cpu(folder: Path) -> None:
    assert opened(folder, settings(Session(), CPU, 1), inputs()).device_bytes() is None


@pytest.mark.gpu
@pytest.mark.parametrize("session", [Session(), Session(tf32=False), Session(cuda_graph=True), Session(io="host")])
def test_a_gpu_session_runs_on_the_gpu(folder: Path, session: Session) -> None:
    timed = opened(folder, settings(session, CUDA, 1), inputs())
    assert timed.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    for _ in range(3):
        timed.run()
    bound = 2e-2 if session.tf32 else 1e-4
    np.testing.assert_allclose(timed.outputs()["y"], X @ W + 1, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"onnxruntime", "onnxruntime-gpu"}, "both installed and overwrite each other's files"),
        (set(), "ONNX Runtime is not installed"),
    ],
)
def test_two_builds_of_onnx_runtime_or_none_are_refused(names: set[str], message: str) -> None:
    def installed(name: str) -> str:
        if name not in names:
            raise metadata.PackageNotFoundError(name)
        return "1.31.1"

    with pytest.raises(InputError, match=message):
        check_installation(installed)


def test_the_installation_that_runs_these_tests_is_accepted() -> None:
    check_installation()
