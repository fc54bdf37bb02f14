"""What ONNX Runtime's operators reach of what the machine can do, one by one, at a Llama's shapes.

    python benchmarks/operators.py                          the study's largest model, 2 × 1024 tokens, on a GPU in fp16
    python benchmarks/operators.py --hidden 4096 --batch 1  Llama-2-7B's shapes, one prompt
    python benchmarks/operators.py --hidden 4096 --batch 1 --step                       … and a step, 1024 tokens deep
    python benchmarks/operators.py --provider CPUExecutionProvider --sequence 32        on a CPU in fp32

A graph holds an operator several times, each with weights of its own, since what lies in a cache shows nothing. On a
GPU its kernels' own times count (CUPTI through torch's profiler), on a CPU the fastest of some runs. The floor is the
longer of operations at the fastest matrix product and bytes at the fastest reading, both measured here, just before;
inputs, weights and outputs count once. `--config KEY=VALUE` and `--option KEY=VALUE` (of the provider) try a session's
settings, environment variables those of the libraries.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from llama_bench.bench import kernels, roofline
from llama_bench.engines import onnxruntime as engine
from llama_bench.sweep import Session, Target

CONTRIB = "com.microsoft"
WEIGHT_BYTES = 400e6  # of all copies of an operator together: many times a GPU's L2
FEWEST, MOST = 3, 8  # copies of an operator in a graph
WIDTH = 128  # of a head


@dataclass
class Graph:
    """Nodes with their inputs and weights; `operations` and `moved` bytes are those of one copy."""

    name: str
    make: Callable[[Graph, int], None]  # adds copy number i
    operations: float = 0.0
    moved: float = 0.0
    weight_bytes: float = 0.0
    nodes: list[Any] = field(default_factory=list)
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)  # output → the input whose buffer it is written into

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))


def random(dtype: Any, *shape: int) -> Any:
    """Return random numbers, repeated after a million: neither zeros, which draw little power, nor slow to make."""
    some = np.random.default_rng(0).standard_normal(min(math.prod(shape), 1 << 20), dtype=np.float32) * 0.02
    return np.resize(some, shape).astype(dtype)


def product(name: str, rows: int, inner: int, outer: int, dtype: Any, turned: bool = False) -> Graph:
    """Multiply [rows, inner] with a weight [inner, outer], or with one that lies turned."""

    def make(graph: Graph, i: int) -> None:
        graph.inputs["x"] = random(dtype, rows, inner)
        graph.weights[f"w{i}"] = random(dtype, *((outer, inner) if turned else (inner, outer)))
        if turned:
            graph.add("FusedMatMul", ["x", f"w{i}"], [f"y{i}"], CONTRIB, transB=1)
        else:
            graph.add("MatMul", ["x", f"w{i}"], [f"y{i}"])
        graph.outputs[f"y{i}"] = (rows, outer)

    size = np.dtype(dtype).itemsize
    weight = float(inner * outer * size)
    moved = weight + size * rows * (inner + outer)
    return Graph(name, make, 2.0 * rows * inner * outer, moved, weight)


def few_bits(name: str, rows: int, inner: int, outer: int, dtype: Any, bits: int, block: int) -> Graph:
    """Multiply with a weight in `bits` bits, a scale for each block of its inputs (MatMulNBits, symmetric)."""
    blocks, size = inner // block, np.dtype(dtype).itemsize

    def make(graph: Graph, i: int) -> None:
        graph.inputs["x"] = random(dtype, rows, inner)
        codes = np.random.default_rng(i).integers(0, 256, (outer, blocks, block * bits // 8), dtype=np.uint8)
        graph.weights |= {f"w{i}": codes, f"s{i}": random(dtype, outer, blocks)}
        attributes = {"K": inner, "N": outer, "bits": bits, "block_size": block}
        graph.add("MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], CONTRIB, **attributes)
        graph.outputs[f"y{i}"] = (rows, outer)

    weight = inner * outer * bits / 8 + outer * blocks * size
    return Graph(name, make, 2.0 * rows * inner * outer, weight + size * rows * (inner + outer), weight)


def gated(name: str, rows: int, inner: int, dtype: Any, split: bool) -> Graph:
    """SiLU of the gate times up: of two products, or of one that is split first."""

    def make(graph: Graph, i: int) -> None:
        gate, up = f"g{i}", f"u{i}"
        if split:
            graph.inputs[f"p{i}"] = random(dtype, rows, 2 * inner)
            graph.add("Split", [f"p{i}"], [gate, up], axis=-1, num_outputs=2)
        else:
            graph.inputs |= {name: random(dtype, rows, inner) for name in (gate, up)}
        graph.add("QuickGelu", [gate], [f"a{i}"], CONTRIB, alpha=1.0)
        graph.add("Mul", [f"a{i}", up], [f"y{i}"])
        graph.outputs[f"y{i}"] = (rows, inner)

    return Graph(name, make, 0.0, 3.0 * rows * inner * np.dtype(dtype).itemsize)


def norm(name: str, rows: int, hidden: int, dtype: Any) -> Graph:
    """The sum with the residual and its RMSNorm (SkipSimplifiedLayerNormalization)."""

    def make(graph: Graph, i: int) -> None:
        graph.inputs |= {f"{name}{i}": random(dtype, 1, rows, hidden) for name in ("x", "r")}
        graph.weights[f"g{i}"] = random(dtype, hidden)
        outputs = [f"y{i}", "", "", f"s{i}"]
        graph.add("SkipSimplifiedLayerNormalization", [f"x{i}", f"r{i}", f"g{i}"], outputs, CONTRIB, epsilon=1e-5)
        graph.outputs |= {f"{name}{i}": (1, rows, hidden) for name in ("y", "s")}

    return Graph(name, make, 0.0, 4.0 * rows * hidden * np.dtype(dtype).itemsize)


def attention(name: str, batch: int, new: int, past: int, hidden: int, dtype: Any) -> Graph:
    """GroupQueryAttention on a packed product, which turns, appends to the cache in place, and attends."""
    heads, total, size = hidden // WIDTH, past + new, np.dtype(dtype).itemsize

    def make(graph: Graph, i: int) -> None:
        graph.inputs |= {
            "qkv": random(dtype, batch, new, 3 * hidden),
            "seqlens_k": np.full(batch, total - 1, np.int32),
            "total_sequence_length": np.array(total, np.int32),
        }
        graph.weights |= {table: random(dtype, total, WIDTH // 2) for table in ("cos", "sin")}
        for part in ("k", "v"):
            graph.inputs[f"past_{part}{i}"] = random(dtype, batch, heads, total, WIDTH)
            graph.outputs[f"present_{part}{i}"] = (batch, heads, total, WIDTH)
            graph.shared[f"present_{part}{i}"] = f"past_{part}{i}"
        given = ["qkv", "", "", f"past_k{i}", f"past_v{i}", "seqlens_k", "total_sequence_length", "cos", "sin"]
        made = [f"y{i}", f"present_k{i}", f"present_v{i}"]
        sizes = {"num_heads": heads, "kv_num_heads": heads, "do_rotary": 1}
        graph.add("GroupQueryAttention", given, made, CONTRIB, **sizes)
        graph.outputs[f"y{i}"] = (batch, new, hidden)

    seen = (new + 1) / 2 + past  # tokens that a new one sees, in the mean
    cache, io = 2 * batch * hidden * total * size, 4 * batch * new * hidden * size
    return Graph(name, make, 4.0 * batch * new * seen * hidden, float(cache + io), float(cache))


def operators(hidden: int, inner: int, batch: int, sequence: int, step: bool, dtype: Any) -> list[Graph]:
    """Return the operators of a layer, each in the forms that a pass may give it."""
    rows = batch if step else batch * sequence
    products = {
        "query, key, value": (hidden, 3 * hidden),
        "output": (hidden, hidden),
        "gate or up": (hidden, inner),
        "gate and up": (hidden, 2 * inner),
        "down": (inner, hidden),
    }
    found = [
        product(name + (", turned" if turned else ""), rows, *sizes, dtype, turned)
        for name, sizes in products.items()
        for turned in (False, True)
    ]
    for bits, block in ((4, 128), (4, 32), (8, 128)):
        found += [
            few_bits(f"{name}, {bits} bits in {block}", rows, *sizes, dtype, bits, block)
            for name, sizes in products.items()
        ]
    past = (sequence, 1) if step else (0, sequence)
    return [
        *found,
        attention("attention", batch, past[1], past[0], hidden, dtype),
        gated("SiLU and product", rows, inner, dtype, split=False),
        gated("split, SiLU and product", rows, inner, dtype, split=True),
        norm("sum and norm", rows, hidden, dtype),
    ]


class Bound:
    """A session of a graph whose inputs and outputs lie on its device."""

    def __init__(self, graph: Graph, settings: Mapping[str, Any], folder: Path) -> None:
        names = {name: array for name, array in graph.inputs.items()}
        inputs = [helper.make_tensor_value_info(name, _type(array), array.shape) for name, array in names.items()]
        dtype = next(_type(array) for array in names.values() if array.dtype.kind == "f")
        outputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in graph.outputs.items()]
        weights = [
            helper.make_tensor(name, _type(array), array.shape, array.tobytes(), raw=True)
            for name, array in graph.weights.items()
        ]
        proto = helper.make_graph(graph.nodes, "operators", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)]
        model = folder / "model.onnx"
        onnx.save(helper.make_model(proto, opset_imports=opsets, ir_version=9), model, save_as_external_data=True)
        self.session = engine.load(model, settings)
        self.binding = self.session.io_binding()
        device = "cpu" if settings["provider"] == engine.CPU else "cuda"
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array, "cpu" if name == "total_sequence_length" else device, 0)
            for name, array in names.items()
        }
        for name, value in values.items():
            self.binding.bind_ortvalue_input(name, value)
        for name in graph.outputs:
            if name in graph.shared:
                self.binding.bind_ortvalue_output(name, values[graph.shared[name]])
            else:
                self.binding.bind_output(name, device, 0)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()


def _type(array: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def measure(graph: Graph, settings: Mapping[str, Any], gpu: bool) -> tuple[float, str]:
    """Return the seconds of one copy, and what took the longest."""
    copies = max(FEWEST, min(MOST, math.ceil(WEIGHT_BYTES / max(graph.weight_bytes, 1.0))))
    for i in range(copies):
        graph.make(graph, i)
    with tempfile.TemporaryDirectory() as folder:
        bound = Bound(graph, settings, Path(folder))
        if gpu:
            seen = kernels.profile(bound)
            return sum(one.seconds for one in seen.kernels) / copies, seen.kernels[0].name
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            bound.run()
            seconds.append(time.perf_counter() - begin)
        return min(seconds) / copies, ""


def pair(words: str) -> tuple[str, str]:
    key, _, value = words.partition("=")
    return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=1024, help="tokens of a prompt, or in the cache before a step")
    parser.add_argument("--step", action="store_true", help="one new token a sequence")
    parser.add_argument("--provider", default=engine.CUDA)
    parser.add_argument("--config", type=pair, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--option", type=pair, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", default="", help="operators whose names begin so")
    asked = parser.parse_args()
    gpu = asked.provider == engine.CUDA
    if gpu and not kernels.begin():
        sys.exit("torch's profiler finds no GPU here; --provider CPUExecutionProvider times a CPU")
    said = Session(config=dict(asked.config), provider_options=dict(asked.option))
    settings = engine.settings("onnxruntime", said, Target(tag="bench", provider=asked.provider), 2)
    dtype = np.float16 if gpu else np.float32
    rates = {(one.what, one.dtype): one.per_second for one in roofline.measure(asked.provider, 2)}
    fastest, read = rates["matmul", "fp16" if gpu else "fp32"], rates["read", ""]
    print(f"matrix product {fastest / 1e12:.1f} TFLOP/s, reading {read / 1e12:.3f} TB/s")
    print(f"{'operator':34}{'µs':>10}{'TFLOP/s':>10}{'TB/s':>8}{'floor':>8}  longest kernel")
    for graph in operators(asked.hidden, asked.inner, asked.batch, asked.sequence, asked.step, dtype):
        if not graph.name.startswith(asked.only):
            continue
        try:
            seconds, longest = measure(graph, settings, gpu)
        except Exception as error:  # an operator that this provider lacks: the others go on
            print(f"{graph.name:34}{' '.join(str(error).split())[:120]}")
            continue
        floor = max(graph.operations / fastest, graph.moved / read)
        print(
            f"{graph.name:34}{seconds * 1e6:10.1f}{graph.operations / seconds / 1e12:10.1f}"
            f"{graph.moved / seconds / 1e12:8.3f}{floor / seconds:8.0%}  {longest}"
        )


if __name__ == "__main__":
    main()
