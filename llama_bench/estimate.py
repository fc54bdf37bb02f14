"""What a plan will need before anything starts: disk, memory of an arm, seconds to build and to measure. Pure.

The numbers are for deciding whether to start, and are right within a factor of two or so: seconds come from counted
operations and one measured rate, bytes from the sizes of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from llama_bench.bench.slot import WASHOUT_GPU_S, WASHOUT_LEAST_S
from llama_bench.counts import cache_bytes, flops, model_bytes, moved_bytes, output_bytes, reference_bytes, scored
from llama_bench.model.weights import RESIDENT_BYTES
from llama_bench.plan import Artifact, Cell, Plan
from llama_bench.sweep import AnyModel, Measure, OwnModel, Pass, Workload
from llama_bench.sweep_own import model_of

GPU_FLOPS_PER_S = 100e12  # assumed of any GPU, fp32 in TF32: an H200 did the study's largest prompt at 190e12
BYTES_PER_S, GPU_BYTES_PER_S = 2e10, 2e12  # of memory, assumed of any machine and any GPU: what bounds a step
WARM_UP_RUNS = 5  # three that agree, and the first ones that do not
CONFIRMED_ARMS = 3  # the fastest recipe, its baseline and the control
EXPORT_S = 4.0  # imports and tracing of one export, besides its bytes and its runs
PASS_S = 1.0  # imports of one pass
BUILD_BYTES_PER_S = 2.0e8  # drawing, writing and hashing weights
ARENA_SLACK = 2.5  # ONNX Runtime's arena grows by doubling, and keeps what it once took
CONTEXT_BYTES = 600e6  # what CUDA, cuBLAS and the kernels of ONNX Runtime take of a GPU for each process
PROCESS_BYTES = 250e6  # Python, numpy and ONNX Runtime before any model
GRAPH_BYTES = 30_000  # stored model.onnx without its weights: so much, and per layer
GRAPH_LAYER_BYTES = 40_000
BUILD_MEMORY = {
    "own": 2.5,  # the file is read once for its check, and again by the session that answers for it
    "torchscript": 6.0,
    "dynamo": 1.5,
    "reference": 2.5,
    "prune": 3.0,
    "distill": 5.0,  # the teacher, the student and AdamW's two moments
    "onnxoptimizer": 7.0,
    "onnxruntime": 1.5,
    "transformers": 1.5,
    "onnxscript": 0.5,  # this one and those below hold a tensor at a time, and what they make
    "fuse": 0.5,
    "precision": 0.6,
    "quantize": 0.6,
    "quantize on text": 1.5,
}
"""Kind of build (:func:`build_kind`) → its peak memory, × the model's bytes: see docs/measuring.md."""

STREAMED = ("dynamo", "reference")
"""Builds that hold no more than RESIDENT_BYTES of a larger model's weights."""

REWRITTEN = {"fuse turn": 1.0, "fuse gate_up": 0.5, "fuse all": 0.12, "fuse qkv": 0.12, "prune": 1.0, "distill": 1.0}
"""Pass, or its family → the share of a variant's weights that it stores anew in the same form; of all others none.

The shares of packed products are Llama-2-7B's; precision and quantize store all of it in their own number of bits.
"""

BUILD_MEMORY_BASE = 700_000_000  # torch, onnx and the exporter, however small the model


class Stored(NamedTuple):
    """The weights of a variant: their bytes, and the bits of a number."""

    bytes: int
    bits: int


@dataclass(frozen=True, slots=True)
class Costs:
    """What measuring costs besides the timed runs: seconds, and bytes of the model a second.

    `restart_s` is for the arms together, `process_s` for each up to its session, `examine_s` for looking at each once,
    besides the model's bytes; a slot's untimed runs take at least `washout_s`, and at least one run.
    """

    restart_s: float
    process_s: float
    load_bytes_per_s: float
    examine_s: float
    examine_bytes_per_s: float
    washout_s: float


ON_CPU = Costs(
    restart_s=0,
    process_s=0.4,
    load_bytes_per_s=1e9,
    examine_s=0.4,
    examine_bytes_per_s=2.5e8,
    washout_s=WASHOUT_LEAST_S,
)
"""Six processes at once took 2.4 s on 2 cores; saving the executed graph costs several loads of the model."""

ON_GPU = Costs(
    restart_s=6.0, process_s=0.5, load_bytes_per_s=16e9, examine_s=3.0, examine_bytes_per_s=1e9, washout_s=WASHOUT_GPU_S
)
"""Seen beside an H200 with 16 cores: sessions load and run once side by side, and the kernels of each are profiled."""


@dataclass(frozen=True, slots=True)
class CellNeeds:
    """One cell: seconds of one run of the baseline, bytes of one arm, seconds of the pilot and at most."""

    cell: str
    label: str
    model: str
    workload: str
    target: str
    arms: int
    timed_runs: int
    run_s: float
    arm_bytes: int
    pilot_s: float
    most_s: float


@dataclass(frozen=True, slots=True)
class Needs:
    """A whole plan, nothing of it built yet. Seconds to build are those of one task after another.

    `weight_bytes` are those of all variants, each content once.
    """

    exports: int
    passes: int
    references: int
    weight_bytes: int
    graph_bytes: int
    reference_bytes: int
    build_bytes: int
    build_s: float
    cells: tuple[CellNeeds, ...]

    @property
    def disk_bytes(self) -> int:
        """Bytes in the store: weights once by content, graphs, and torch's outputs."""
        return self.weight_bytes + self.graph_bytes + self.reference_bytes

    @property
    def pilot_s(self) -> float:
        return sum(cell.pilot_s for cell in self.cells)

    @property
    def most_s(self) -> float:
        return sum(cell.most_s for cell in self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, the sums too."""
        return {**asdict(self), "disk_bytes": self.disk_bytes, "pilot_s": self.pilot_s, "most_s": self.most_s}


def estimates(plan: Plan, flops_per_s: float, gpu_flops_per_s: float = GPU_FLOPS_PER_S) -> Needs:
    """Estimate what `plan` needs on a machine that does `flops_per_s` operations of an fp32 matrix product a second.

    `gpu_flops_per_s` stands for the targets that need a GPU.
    """
    weights: dict[str, int] = {}
    exports = passes = references = graph = reference = build_bytes = 0
    build_s = 0.0
    models: dict[str, AnyModel] = {}
    stored: dict[str, Stored] = {}  # variant → how its weights are stored
    for artifact in plan.artifacts.values():
        if artifact.kind == "export":
            model = model_of(artifact.spec["model"])
            workload = Workload.model_validate(artifact.spec["workload"])
            size = model_bytes(model)
            weights[_content(artifact.spec["model"])] = size
            stored[artifact.id] = Stored(size, 32)
            exports += 1
            build_s += EXPORT_S + size / BUILD_BYTES_PER_S + 2 * flops(model, workload) / flops_per_s
        elif artifact.kind == "reference":
            model = model_of(artifact.spec["model"])
            workload = Workload.model_validate(artifact.spec["workload"])
            outputs = reference_bytes(model, workload, artifact.spec["text"])
            references, reference = references + 1, reference + outputs
            runs = 1 + scored(model, workload, artifact.spec["text"]) / workload.given
            build_s += EXPORT_S + outputs / BUILD_BYTES_PER_S + runs * flops(model, workload) / flops_per_s
            build_bytes = max(build_bytes, build_memory(model, build_kind(artifact)))
            continue
        else:
            model = models[str(artifact.parent)]
            size = model_bytes(model)
            stored[artifact.id], weights[artifact.id] = _after(artifact, stored[str(artifact.parent)])
            passes += 1
            build_s += PASS_S + size / BUILD_BYTES_PER_S
        models[artifact.id] = model
        graph += GRAPH_BYTES + GRAPH_LAYER_BYTES * (1 if isinstance(model, OwnModel) else model.num_hidden_layers)
        build_bytes = max(build_bytes, build_memory(model, build_kind(artifact)))
    cells = tuple(_cell(cell, flops_per_s, gpu_flops_per_s) for cell in plan.cells)
    return Needs(exports, passes, references, sum(weights.values()), graph, reference, build_bytes, build_s, cells)


def _after(artifact: Artifact, before: Stored) -> tuple[Stored, int]:
    """Return how a pass leaves the weights, and how many bytes of them no variant had before."""
    step = Pass.model_validate(artifact.spec)
    said = step.options.get("bits", 4 if step.name == "weights" else 8)
    assert isinstance(said, int)
    bits = {"precision": 16, "quantize": said}
    if step.family in bits and step.name != "kv_cache":
        after = Stored(before.bytes * bits[step.family] // before.bits, bits[step.family])
        return after, after.bytes
    return before, int(before.bytes * REWRITTEN.get(f"{step.family} {step.name}", REWRITTEN.get(step.family, 0.0)))


def build_kind(artifact: Artifact) -> str:
    """Return the kind of build that `artifact` is: a key of BUILD_MEMORY, or another family of passes."""
    if artifact.kind == "export":
        model = model_of(artifact.spec["model"])
        return "own" if isinstance(model, OwnModel) else str(model.exporter)
    if artifact.kind == "reference":
        return "own" if isinstance(model_of(artifact.spec["model"]), OwnModel) else "reference"
    step = Pass.model_validate(artifact.spec)
    on_text = step.name in ("kv_cache", "static") or step.options.get("method") == "gptq" or "smooth" in step.options
    return "quantize on text" if step.family == "quantize" and on_text else step.family


def build_memory(model: AnyModel, kind: str) -> int:
    """Return the peak memory in bytes of a build of `kind` (see :func:`build_kind`) of `model` or on it."""
    size = model_bytes(model)
    held = min(size, RESIDENT_BYTES) if kind in STREAMED else size
    return int(BUILD_MEMORY_BASE + BUILD_MEMORY.get(kind, max(BUILD_MEMORY.values())) * held)


def arm_bytes(model: AnyModel, workload: Workload) -> int:
    """Memory of one arm's process: weights, activations (three of the MLP, two of attention) in an arena, outputs.

    Measured at hidden 2048, 2 × 1024 tokens: 2.5 GB, of which 1.7 GB are the arena. An own model's activations are
    those of its graph that are alive at once.
    """
    return int(PROCESS_BYTES) + _beside_weights(model, workload) + model_bytes(model)


def gpu_arm_bytes(model: AnyModel, workload: Workload, weight_bytes: int) -> int:
    """Memory of one arm on a GPU: CUDA's own, `weight_bytes` as its variant stores them, and the rest as on a host.

    For deciding how many arms share a GPU. Where the weights are stored in half precision or less, activations and
    caches take half of it.
    """
    beside = _beside_weights(model, workload)
    half = weight_bytes <= HALF * model_bytes(model)
    return int(CONTEXT_BYTES) + (beside // 2 if half else beside) + weight_bytes


HALF = 0.6
"""Share of a model's bytes in fp32 that it has in half precision, with some that stays as it was."""


def gpu_host_bytes(model: AnyModel, workload: Workload, weight_bytes: int) -> int:
    """Memory on the host of an arm on a GPU: its process, its weights while they are read, and outputs to check."""
    return int(PROCESS_BYTES) + weight_bytes + 2 * output_bytes(model, workload)


def _beside_weights(model: AnyModel, workload: Workload) -> int:
    """Bytes of an arm's activations in an arena, its KV cache and its outputs, in fp32."""
    if isinstance(model, OwnModel):
        live = model.cost(workload.batch, workload.given).live_bytes
        return int(ARENA_SLACK * live) + output_bytes(model, workload)
    mlp = 3 * workload.batch * workload.given * model.intermediate_size
    scores = 2 * workload.batch * model.num_attention_heads * workload.given**2
    arena = ARENA_SLACK * 4 * (mlp + scores)
    cache = 2 * cache_bytes(model, workload) if model.cache else 0  # a growing cache is there twice
    return int(arena) + output_bytes(model, workload) + cache


def cell_seconds(measure: Measure, arms: int, run_s: float, model_bytes: int, costs: Costs = ON_CPU) -> float:
    """Seconds of a cell's pilot: examination of each arm, then restarts of start, load, warm-up, blocks of slots."""
    examine = costs.examine_s + model_bytes / costs.examine_bytes_per_s + 2 * run_s
    slot = max(costs.washout_s, run_s) + measure.runs * run_s
    load_s = costs.process_s + model_bytes / costs.load_bytes_per_s
    restart = load_s + (WARM_UP_RUNS + 1) * run_s + measure.blocks * slot
    return arms * (examine + measure.restarts * restart) + measure.restarts * costs.restart_s


def _cell(cell: Cell, flops_per_s: float, gpu_flops_per_s: float) -> CellNeeds:
    measure = cell.measure
    gpu, size = cell.target.needs_gpu, model_bytes(cell.model)
    rate, bandwidth = (gpu_flops_per_s, GPU_BYTES_PER_S) if gpu else (flops_per_s, BYTES_PER_S)
    run_s = max(flops(cell.model, cell.workload) / rate, moved_bytes(cell.model, cell.workload, size) / bandwidth)
    pilot_s = cell_seconds(measure, len(cell.arms), run_s, size, ON_GPU if gpu else ON_CPU)
    # the fastest of the recipes, with baseline and control, as often again
    confirms = measure.confirm and len(cell.arms) >= CONFIRMED_ARMS
    confirm_s = pilot_s * CONFIRMED_ARMS / len(cell.arms) if confirms else 0.0
    return CellNeeds(
        cell=cell.id,
        label=cell.label,
        model=cell.model.label,
        workload=cell.workload_name,
        target=cell.target_name,
        arms=len(cell.arms),
        timed_runs=measure.restarts * measure.blocks * measure.runs,
        run_s=run_s,
        arm_bytes=arm_bytes(cell.model, cell.workload),
        pilot_s=pilot_s,
        most_s=(max(pilot_s, measure.budget_s) if measure.half_width else pilot_s) + confirm_s,
    )


def _content(spec: Mapping[str, Any]) -> str:
    """Return what decides the stored bytes of the weights: exporters store the same tensors transposed or not."""
    if "onnx" in spec:
        return str(spec["onnx_sha256"])
    return repr(
        {key: value for key, value in spec.items() if key not in ("opset", "attention_mask", "rope_theta", "cache")}
    )
