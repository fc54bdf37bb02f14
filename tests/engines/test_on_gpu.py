"""What only a real GPU shows of the engines: answers, CUDA graphs, placement, want of memory. `pytest -m gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llama_bench import engines, passes
from llama_bench.bench import nvml
from llama_bench.engines import Task, TimedSession
from llama_bench.engines.executed import examine
from llama_bench.errors import GpuMemoryError, WorkError
from llama_bench.model import export, llama, reference
from llama_bench.model.inputs import make_inputs
from llama_bench.sweep import Model, Pass, Session, Target, Workload

pytestmark = pytest.mark.gpu

CUDA = Target(tag="bench_gpu", provider="CUDAExecutionProvider", threads=2)

MODEL = Model(
    hidden_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    intermediate_size=512,
    vocab_size=512,
    max_position_embeddings=128,
    cache=True,
)
"""Heads of 64 numbers, which flash attention has kernels for."""

HALF = 2e-2
"""Of the largest value: what fp16 may differ from fp32 in two layers; a wrong graph differs by 0.3 and more."""

FUSED: tuple[dict[str, Any], ...] = ({"fuse": "all"}, {"precision": "fp16"})


def workload(kind: str, batch: int) -> Workload:
    sizes = {"prefill": {"sequence": 24}, "decode": {"context": 40}, "generate": {"prompt": 9, "new_tokens": 12}}
    return Workload.model_validate({"kind": kind, "batch": batch, "outputs": "last_logits", **sizes[kind]})


@dataclass(frozen=True)
class Variant:
    """A folder with a graph, and the network in torch that it is of."""

    folder: Path
    model: Model
    network: llama.Llama

    def opened(self, wanted: Workload, engine: str = "onnxruntime", **session: Any) -> TimedSession:
        return engines.open_session(self.folder, settings(engine, **session), self.task(wanted))

    def task(self, wanted: Workload) -> Task:
        return Task(self.model.model_dump(), wanted.model_dump(), make_inputs(self.model, wanted))

    def torch(self, wanted: Workload) -> dict[str, np.ndarray]:
        """Return what torch computes on the CPU in fp32; of a decode with its cache."""
        return llama.run(self.network, self.model, wanted, make_inputs(self.model, wanted))


def settings(engine: str = "onnxruntime", **session: Any) -> dict[str, Any]:
    return engines.settings(engine, Session(**session), CUDA, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Variant]:
    """Return a maker of variants with a KV cache; each is made once."""
    known: dict[str, Variant] = {}

    def make(*steps: dict[str, Any]) -> Variant:
        if str(steps) not in known:
            folder, wanted = tmp_path_factory.mktemp("variant"), workload("decode", 2)
            if not steps:
                network = llama.build(MODEL, wanted)
                export.write(network, MODEL, wanted, folder / "model.onnx")
            else:
                before = make(*steps[:-1])
                network, step = before.network, Pass.model_validate(steps[-1])
                passes.apply(step, before.folder, folder, MODEL, wanted, tmp_path_factory.mktemp("state"))
            known[str(steps)] = Variant(folder, MODEL, network)
        return known[str(steps)]

    return make


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The same network without a cache, in fp32, for a prefill of two prompts."""
    model, wanted = MODEL.model_copy(update={"cache": False}), workload("prefill", 2)
    folder, network = tmp_path_factory.mktemp("static"), llama.build(model, wanted)
    export.write(network, model, wanted, folder / "model.onnx")
    return Variant(folder, model, network)


def agree(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], bound: float) -> None:
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        assert np.isfinite(found[name]).all(), name
        assert np.abs(found[name] - value).max() <= bound * np.abs(value).max(), name


def likely(variant: Variant, wanted: Workload, tokens: np.ndarray, bound: float) -> None:
    """Check that every new token was, within `bound` of the range, the likeliest one in torch after those before it."""
    prompt = make_inputs(variant.model, wanted)["input_ids"]
    windows = np.concatenate([prompt, tokens], axis=1)
    for window, logits in zip(windows, reference.predict(variant.network, variant.model, windows), strict=True):
        for place in range(prompt.shape[1], len(window)):
            before = logits[place - 1]
            assert before.max() - before[window[place]] <= 2 * bound * np.abs(before).max(), place


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["prefill", "decode", "generate"])
@pytest.mark.parametrize("session", [{}, {"cuda_graph": True}, {"io": "host"}], ids=["plain", "graph", "host"])
def test_fused_fp16_gives_torchs_answers_run_after_run(
    made: Callable[..., Variant], kind: str, batch: int, session: dict[str, Any]
) -> None:
    variant, wanted = made(*FUSED), workload(kind, batch)
    timed = variant.opened(wanted, **session)
    assert timed.providers[0] == "CUDAExecutionProvider"
    expected = {} if kind == "generate" else variant.torch(wanted)
    for _ in range(4):  # a CUDA graph is captured in the first ones and replayed from then on
        timed.run()
        found = timed.outputs()
        if kind == "generate":
            assert found["tokens"].shape == (batch, 12)
            likely(variant, wanted, found["tokens"], HALF)
        else:
            agree(found, expected, HALF)


def test_a_graph_as_it_was_exported_gives_torchs_answers_with_a_growing_cache(made: Callable[..., Variant]) -> None:
    variant = made()
    for kind in ("prefill", "decode"):
        timed = variant.opened(workload(kind, 2), tf32=False)
        timed.run()
        agree(timed.outputs(), variant.torch(workload(kind, 2)), 1e-4)


def test_without_tf32_products_are_fp32_and_with_it_they_are_not(static: Variant) -> None:
    wanted = workload("prefill", 2)
    expected, found = static.torch(wanted)["logits"], {}
    for tf32 in (False, True):
        timed = static.opened(wanted, tf32=tf32)
        timed.run()
        found[tf32] = np.abs(timed.outputs()["logits"] - expected).max() / np.abs(expected).max()
    assert found[False] <= 1e-4
    assert 3 * found[False] < found[True] <= HALF


@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.9)])
def test_weights_in_few_bits_answer_alike_with_either_of_cudas_kernels(
    made: Callable[..., Variant], bits: int, least: float
) -> None:
    quantised: dict[str, Any] = {"quantize": {"bits": bits, "block_size": 64, "symmetric": True}}
    variant, wanted = made(*FUSED, quantised), workload("decode", 2)
    expected, found = variant.torch(wanted)["logits"], []
    for config in ({}, {"ep.cuda.fpa_intb_gemm": "1"}):
        timed = variant.opened(wanted, config=config)
        timed.run()
        found.append(timed.outputs()["logits"])
        assert cosine(found[-1], expected) > least, config
    assert cosine(*found) > 0.999


@pytest.mark.parametrize("which", ["static", "shared"])
def test_io_on_the_host_gives_what_io_on_the_device_gives(
    static: Variant, made: Callable[..., Variant], which: str
) -> None:
    variant, wanted = (static, workload("prefill", 2)) if which == "static" else (made(*FUSED), workload("decode", 2))
    found = []
    for io in ("device", "host"):
        timed = variant.opened(wanted, io=io, tf32=False)
        timed.run()
        found.append(timed.outputs())
    agree(found[1], found[0], 1e-5 if which == "static" else HALF)


@pytest.mark.parametrize("kind", ["prefill", "decode", "generate"])
def test_torch_in_fp16_gives_torchs_answers(made: Callable[..., Variant], kind: str, tmp_path: Path) -> None:
    variant, wanted = Variant(tmp_path, MODEL, made().network), workload(kind, 2)
    timed = variant.opened(wanted, "torch-sdpa", precision="fp16")
    for _ in range(2):
        timed.run()
    if kind == "generate":
        likely(variant, wanted, timed.outputs()["tokens"], HALF)
    else:
        agree(timed.outputs(), variant.torch(wanted), HALF)
    assert (timed.device_bytes() or 0) > 0


def test_torch_compiled_in_fp16_gives_torchs_answers(made: Callable[..., Variant], tmp_path: Path) -> None:
    why = engines.missing(settings("torch-compile", precision="fp16"))
    if why is not None:
        pytest.skip(why)
    variant, wanted = Variant(tmp_path, MODEL, made().network), workload("decode", 2)
    timed = variant.opened(wanted, "torch-compile", precision="fp16")
    timed.run()
    agree(timed.outputs(), variant.torch(wanted), HALF)


# ── what is executed ─────────────────────────────────────────────────────────────────────────────────────────────────


def small(folder: Path, body: str, result: str = "float[8,16] y") -> Path:
    """Write a graph that begins with x [8, 16] and has a weight w [16, 16]."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> small (float[8,16] x) => ({result}) {{ {body} }}'
    )
    weight = np.random.default_rng(2).normal(size=(16, 16)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    folder.mkdir(exist_ok=True)
    onnx.save_model(model, str(folder / "model.onnx"))
    return folder


X = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32) / 8
TASK = Task({"cache": False}, {"kind": "prefill"}, {"x": X})


def test_a_node_that_cuda_has_no_kernel_for_is_counted_on_the_cpu_with_the_copies_around_it(tmp_path: Path) -> None:
    through = small(tmp_path / "m", "a = MatMul(x, w) b = Sinh(a) y = MatMul(b, w)")
    found = examine(through, settings(), TASK, tmp_path)
    assert found.placement["CPUExecutionProvider"] == {"Sinh": 1}
    assert found.placement["CUDAExecutionProvider"]["MatMul"] == 2
    counted: dict[str, int] = {}
    for operators in found.placement.values():
        for name, count in operators.items():
            counted[name] = counted.get(name, 0) + count
    assert counted["MemcpyToHost"] >= 1
    assert counted["MemcpyFromHost"] >= 1
    all_on_gpu = examine(small(tmp_path / "n", "a = MatMul(x, w) y = MatMul(a, w)"), settings(), TASK, tmp_path)
    assert list(all_on_gpu.placement) == ["CUDAExecutionProvider"]


def test_a_fused_model_runs_its_products_and_its_attention_on_the_gpu(
    made: Callable[..., Variant], tmp_path: Path
) -> None:
    variant, wanted = made(*FUSED), workload("decode", 1)
    placed = examine(variant.folder, settings(), variant.task(wanted), tmp_path).placement
    assert placed["CUDAExecutionProvider"]["GroupQueryAttention"] == 2
    assert not {"MatMul", "GroupQueryAttention"} & set(placed.get("CPUExecutionProvider", {}))


def test_a_cuda_graph_of_a_model_with_nodes_on_the_cpu_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="CUDA graph") as error:
        timed = engines.open_session(
            small(tmp_path / "m", "a = MatMul(x, w) b = Sinh(a) y = MatMul(b, w)"), settings(cuda_graph=True), TASK
        )
        for _ in range(3):
            timed.run()
    assert "cuda_graph" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_variable_that_hides_the_gpu_is_named_and_nothing_falls_back(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from llama_bench import engines; from llama_bench.engines import Task\n"
        "from llama_bench.sweep import Session, Target\n"
        "target = Target(tag='bench_gpu', provider='CUDAExecutionProvider')\n"
        "chosen = engines.settings('onnxruntime', Session(), target, 1)\n"
        "task = Task({'cache': False}, {'kind': 'prefill'}, {'x': np.zeros((8, 16), np.float32)})\n"
        "print(engines.missing(chosen))\n"
        "engines.open_session(Path(sys.argv[1]), chosen, task)\n"
    )
    folder = small(tmp_path / "m", "y = MatMul(x, w)")
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CUDA_VISIBLE_DEVICES='' leaves no GPU" in ended.stdout
    assert "CUDA_VISIBLE_DEVICES='' leaves no GPU" in ended.stderr.splitlines()[-1]
    assert ended.returncode == 1


# ── memory, and others ───────────────────────────────────────────────────────────────────────────────────────────────

ROOM = 3 * 2**30
"""Bytes of the GPU that another process leaves; what the tests ask for is four times as much."""

HOLD = (
    "import sys, torch\n"
    "free, _ = torch.cuda.mem_get_info()\n"
    "held = torch.empty(max(1 << 20, free - int(sys.argv[1])), dtype=torch.uint8, device='cuda')\n"
    "print(held.numel(), flush=True)\n"
    "sys.stdin.read()\n"
)


@contextmanager
def another(leaves: int) -> Iterator[tuple[int, int]]:
    """Have another process hold all of the GPU's memory but `leaves` bytes; gives its number and what it holds."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(leaves)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child.pid, int(child.stdout.readline())
    finally:
        child.communicate()


def huge(folder: Path) -> tuple[Path, Task]:
    """A product of a column and a row: 12.9 GB from 0.5 MB."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[65536,1] a, float[1,49152] b) => (float[65536,49152] y) '
        "{ y = MatMul(a, b) }"
    )
    folder.mkdir()
    onnx.save_model(model, str(folder / "model.onnx"))
    given = {"a": np.zeros((65536, 1), np.float32), "b": np.zeros((1, 49152), np.float32)}
    return folder, Task({"cache": False}, {"kind": "prefill"}, given)


def test_want_of_gpu_memory_is_one_line_with_numbers_and_the_process_goes_on(tmp_path: Path) -> None:
    folder, task = huge(tmp_path / "huge")
    with another(ROOM):
        for io, when in (("device", "before the first run"), ("host", "while running")):
            with pytest.raises(GpuMemoryError) as error:
                engines.open_session(folder, settings(io=io), task).run()
            said = str(error.value)
            assert said.startswith(f"ONNX Runtime failed {when}")
            assert "the GPU is out of memory" in said
            assert io == "device" or "at MatMul: the GPU is out of memory, 12.9 GB more were wanted" in said
            assert " GB are free" in said
            assert "make batch or sequence smaller" in said
            assert "\n" not in said
    after = engines.open_session(small(tmp_path / "m", "y = MatMul(x, w)"), settings(tf32=False), TASK)
    after.run()
    assert np.isfinite(after.outputs()["y"]).all()


def test_a_limit_of_memory_is_told_like_want_of_it(static: Variant) -> None:
    with pytest.raises(GpuMemoryError, match="the GPU is out of memory"):
        static.opened(workload("prefill", 2), provider_options={"gpu_mem_limit": 4096}).run()


def test_torchs_want_of_gpu_memory_is_the_same_line(made: Callable[..., Variant], tmp_path: Path) -> None:
    variant = Variant(tmp_path, MODEL, made().network)
    wanted = Workload(kind="decode", batch=100_000, context=127)
    with another(ROOM), pytest.raises(GpuMemoryError) as error:
        variant.opened(wanted, "torch-sdpa").run()
    assert str(error.value).startswith("torch failed before the first run: the GPU is out of memory")
    assert "more were wanted" in str(error.value)
    assert "\n" not in str(error.value)
    small_one = variant.opened(workload("decode", 1), "torch-sdpa")
    small_one.run()
    assert small_one.outputs()


def test_another_process_on_the_gpu_is_seen_with_what_it_holds() -> None:
    gpu = nvml.Gpu()
    with another(ROOM) as (pid, held):
        seen = gpu.occupants()
        memory = gpu.memory()
        look = gpu.read()
    gpu.close()
    assert memory is not None
    assert memory.total - memory.free >= held
    if not seen:
        pytest.skip("NVML lists no processes in this container")
    assert look is not None
    assert nvml.foreign(look.processes or (), ()) is not None
    mine = [one for one in seen if one.pid == pid]
    if mine:  # a container shows the host's numbers
        assert (mine[0].bytes or held) >= held
        assert "python" in str(mine[0])
        assert f"pid {pid}" in str(nvml.foreign(look.processes or (), [os.getpid()]))
