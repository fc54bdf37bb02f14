"""What an NVIDIA GPU does in a run of an arm: its kernels and copies, how often and how long, and how long none ran.

torch's profiler (kineto, on NVIDIA's CUPTI) records whatever this process puts on the GPU, so ONNX Runtime's kernels
too, and each of those that a CUDA graph replays. What it records is read from its Chrome trace.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeAlias

from llama_bench.bench.slot import warm_up
from llama_bench.errors import WorkError

RUNS = 5
"""Runs that are profiled, fewer of those that take long: their kernels hardly differ from run to run."""

MOST_S = 2.0
"""Seconds of runs that are profiled, but one run at least: a second of small kernels is a hundred thousand events."""

EDGE_S = 0.01
"""Nothing is run so long after the profiler has begun and before it ends: it leaves out what seems to lie outside, and
the clocks of GPU and host differ a little."""

KERNEL, COPIES = "kernel", ("gpu_memcpy", "gpu_memset")
"""Categories of a trace's events that took place on the GPU."""

MARK = "spin_kernel"
"""What torch's shortest possible sleep on the GPU is called: it stands between two runs, which end with their work."""

COPY = "copy"
OTHER = "other"

CLASSES: tuple[tuple[str, str], ...] = (
    # torch's compiler names a kernel after all that it is made of, what comes next too: of one that works number by
    # number none is attention, and one with an activation is no mere layout
    ("elementwise", r"triton_poi_\w*(silu|gelu|sigmoid)"),
    ("rotary and cache", r"triton_poi_\w*attention"),
    ("attention", r"flash|fmha|sdpa|xqa|kernel_mha|attention|softmax|masked_multihead"),
    ("matmul", r"gemm|gemv|nvjet|cutlass|xmma|split_?k|tinygemm|fpa_?intb|matmul|triton_\w*_(mm|addmm|bmm)|dot_kernel"),
    ("norm", r"layer_?norm|rms_?norm|rsqrt|normalization"),
    (
        "rotary and cache",
        r"rotary|rope|past|present|kv_?cache|concat\w*kv|append\w*kv|seq(uence)?_?len|unpackqkv",
    ),
    ("embedding", r"gather|embedding|index_?select|indexing|indexfunc"),
    ("dequantise", r"quantize|dequant|unpack_?weight"),
    ("layout", r"transpose|permute|concat|catarray|slice|split|copy_kernel|expand|tile|pad|scatter|index_?put"),
    ("norm", r"reduce|mean"),
    ("elementwise", r"elementwise|cast|silu|gelu|sigmoid|swiglu|where|fill|arange|triton_(poi|per|red)_"),
)
"""Class → what the names of its kernels have, in any case: the first that fits counts.

Attention stands first, and products next, since their template arguments name what they are made of. Means and other
reductions count as norms, which are made of them where nothing is fused.
"""

GENERIC = ("kernel", "kernel2", "device_kernel", "elementwise_kernel", "vectorized_elementwise_kernel",
           "unrolled_elementwise_kernel", "reduce_kernel", "devicekernel")  # fmt: skip
"""Names that say nothing without what they are made of: of those the first template argument with a name is kept."""

COMMON_SPACES = ("", "_", "cutlass", "cuda", "native")
"""Namespaces that say nothing either."""

LONGEST = 80
"""Characters of a kernel's name."""

Event: TypeAlias = Mapping[str, Any]


class Session(Protocol):
    """What can be run: a :class:`llama_bench.engines.TimedSession`."""

    def run(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel or a kind of copy: its shortened name, its class, how often it ran and how long in all, a run."""

    name: str
    kind: str
    count: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was recorded, a run: mean over `runs`.

    `launches` are kernels, those that a CUDA graph replays too, and no copies. `busy_s` is the time in which at least
    one kernel or copy ran, `span_s` from the first one's start to the last one's end; `wall_s` how long a run took
    beside, without the profiler (median of as many).
    """

    runs: int
    launches: float
    busy_s: float
    span_s: float
    wall_s: float
    kernels: tuple[Kernel, ...]


def begin() -> bool:
    """Begin the profiler once, before the session is made; False where torch or CUPTI cannot see a GPU.

    CUPTI must know of a CUDA graph before it is captured.
    """
    if not available():
        return False
    _trace(lambda: None, 0)
    return True


def profile(session: Session) -> Profile:
    """Warm the session up, and return what the GPU does in its runs; `begin` was called before it was made.

    Raises WorkError when the session cannot be run, or the trace does not hold what was run.
    """
    run_s = warm_up(session.run).median_s
    runs = max(1, min(RUNS, int(MOST_S / run_s)))
    seconds = [_timed(session.run) for _ in range(runs)]
    return read(_trace(session.run, runs), runs, median(seconds))


def available() -> bool:
    """Return whether torch finds a GPU and its build can ask CUPTI."""
    import torch
    from torch.profiler import ProfilerActivity, supported_activities

    return torch.cuda.is_available() and ProfilerActivity.CUDA in supported_activities()  # type: ignore[no-untyped-call]


def _timed(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _trace(run: Callable[[], None], runs: int) -> list[Event]:
    """Return the events of a run to begin with and of `runs` more, a mark before each of these and behind the last."""
    import torch
    from torch.profiler import ProfilerActivity

    def mark() -> None:
        torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()

    torch.cuda.init()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cycles and of the experimental: nothing that a reader could act on
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as recorded:
            time.sleep(EDGE_S)
            run()
            for _ in range(runs):
                mark()
                run()
            mark()
            time.sleep(EDGE_S)
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events: list[Event] = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return events


def read(events: Iterable[Event], runs: int, wall_s: float) -> Profile:
    """Return the profile of `runs` runs from the events of a Chrome trace (`ts` and `dur` in microseconds).

    Raises WorkError when the marks between the runs are not all there: then no event can be trusted to be a run's.
    """
    wanted = (KERNEL, *COPIES)
    seen = sorted((one for one in events if one.get("ph") == "X" and one.get("cat") in wanted), key=_start)
    marks = [one for one in seen if MARK in one["name"]]
    if len(marks) != runs + 1:
        raise WorkError(f"the profiler saw {len(marks)} of the {runs + 1} marks around {runs} runs")
    ours = [one for one in seen if MARK not in one["name"] and _start(marks[0]) < _start(one) < _start(marks[-1])]
    parts = [[one for one in ours if _start(a) < _start(one) < _start(b)] for a, b in pairwise(marks)]
    if not any(one["cat"] == KERNEL for one in ours):
        raise WorkError("the profiler saw no kernel of the session")
    return Profile(
        runs=runs,
        launches=sum(one["cat"] == KERNEL for one in ours) / runs,
        busy_s=sum(map(_busy_us, parts)) / runs / 1e6,
        span_s=sum(map(_span_us, parts)) / runs / 1e6,
        wall_s=wall_s,
        kernels=_kernels(ours, runs),
    )


def _kernels(events: Iterable[Event], runs: int) -> tuple[Kernel, ...]:
    """Return a row for each name and class, the longest first."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in events:
        copied = one["cat"] in COPIES
        # of a copy, what is in brackets says from where to where
        key = (one["name"][:LONGEST], COPY) if copied else (short(one["name"]), class_of(one["name"]))
        found[key].append(float(one["dur"]))
    rows = [Kernel(*key, len(us) / runs, sum(us) / runs / 1e6) for key, us in found.items()]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.name)))


def _start(event: Event) -> float:
    return float(event["ts"])


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


def _busy_us(events: Sequence[Event]) -> float:
    """Microseconds in which at least one of `events`, sorted by their start, went on: those of several streams once."""
    busy, until = 0.0, float("-inf")
    for one in events:
        busy += max(0.0, _end(one) - max(until, _start(one)))
        until = max(until, _end(one))
    return busy


def _span_us(events: Sequence[Event]) -> float:
    return max(map(_end, events)) - _start(events[0]) if events else 0.0


def class_of(name: str) -> str:
    """Return the class of a kernel by its whole name, template arguments and all."""
    lowered = name.lower()
    return next((word for word, pattern in CLASSES if re.search(pattern, lowered)), OTHER)


def short(name: str) -> str:
    """Return the name of a kernel without its result, namespaces, template arguments and parameters.

    Of one that says nothing by itself (`GENERIC`) its namespace stays, and its first template argument with a name.
    """
    plain = name.replace("(anonymous namespace)", "_").replace("{lambda()#1}", "lambda").removeprefix("void ")
    outer, inside = _cut(plain)
    word = outer.rpartition("::")[2].strip()
    if word.lower() in GENERIC:
        space = outer.rpartition("::")[0].rpartition("::")[2]
        word = word if space in COMMON_SPACES else f"{space}::{word}"
        word += f"<{part}>" if (part := _first_named(inside)) else ""
    return word[:LONGEST] or name[:LONGEST]


def _cut(name: str) -> tuple[str, str]:
    """Return a name as far as its own last word goes, without template arguments, and the arguments of that word."""
    outer, inside, depth = "", "", 0
    for letter in name:
        if letter == "(" and depth == 0:
            break
        if letter == "<":
            inside = "" if depth == 0 else inside + letter
            depth += 1
        elif letter == ">":
            depth -= 1
            inside += letter if depth else ""
        elif depth:
            inside += letter
        else:
            outer += letter
    return outer, inside


def _first_named(arguments: str) -> str:
    """Return the first of template arguments that begins with a letter, as short as a kernel's name."""
    for one in _split(arguments):
        word = _cut(one.strip())[0].rpartition("::")[2].strip()
        if word and not word[0].isdigit() and word not in ("float", "int", "bool", "double", "long", "true", "false"):
            return word
    return ""


def _split(arguments: str) -> list[str]:
    """Return template arguments one by one: commas inside of others' do not count."""
    found, depth = [""], 0
    for letter in arguments:
        depth += (letter in "<({") - (letter in ">)}")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return found
