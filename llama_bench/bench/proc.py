"""What the Linux kernel tells in text files: parsers of that text, and a reader that keeps a file open. A leaf.

Every parser takes the text and returns None for text that does not hold what is asked for: inside a sandbox many of
these files are missing, empty or all zeros. Sources: proc(5) for `/proc/stat` and `/proc/[pid]/stat`;
Documentation/accounting/psi.rst for `/proc/pressure`; Documentation/admin-guide/cgroup-v2.rst and
Documentation/scheduler/sched-bwc.rst for `cpu.stat`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

CGROUPS = Path("/sys/fs/cgroup")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU time of all CPUs since boot, in ticks of the kernel's clock (`USER_HZ`, 10 ms nearly everywhere)."""

    busy: int  # user + nice + system + irq + softirq; guests are inside user and nice
    idle: int  # idle + iowait
    stolen: int  # wanted by this virtual machine while its hypervisor ran something else


def cpu_time(text: str) -> CpuTime | None:
    """Read the first line of `/proc/stat`; None where the line is missing or all zeros (gVisor)."""
    words = text.split("\n", 1)[0].split()
    if len(words) < 5 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
        return None
    user, nice, system, idle, iowait, irq, softirq, stolen = ([int(word) for word in words[1:9]] + [0] * 4)[:8]
    found = CpuTime(user + nice + system + irq + softirq, idle + iowait, stolen)
    return found if found.busy + found.idle else None


def stolen_share(first: CpuTime | None, last: CpuTime | None, surely: bool = False) -> float | None:
    """Share of the CPU time asked for, busy or stolen, that was stolen; None when unknown or when none was asked for.

    Idle CPUs ask for nothing and nothing can be stolen from them: counted in, a cell of one thread on 64 CPUs could
    lose half its time unseen. `surely` gives the least share that the counters allow: they are rounded down to whole
    ticks, so a difference of n ticks may be as little as n - 1, and a single tick in a short block proves nothing.
    """
    if first is None or last is None:
        return None
    stolen, busy = last.stolen - first.stolen, last.busy - first.busy
    if stolen < 0 or busy < 0 or stolen + busy == 0:
        return None
    return max(0, stolen - surely) / (stolen + busy)


def stalled_us(text: str) -> int | None:
    """Microseconds since boot in which some task waited: the `some … total=` of a file in `/proc/pressure`."""
    return _number(_pressure(text).get("total"), int)


def stalled_share(text: str) -> float | None:
    """Share of the last ten seconds in which some task waited: the `some avg10=` of a file in `/proc/pressure`."""
    percent = _number(_pressure(text).get("avg10"), float)
    return None if percent is None else percent / 100


def _pressure(text: str) -> dict[str, str]:
    for line in text.splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return dict(field.split("=", 1) for field in fields if "=" in field)
    return {}


def throttled(text: str) -> int | None:
    """Periods in which a CPU quota stopped the group: `nr_throttled` of `cpu.stat`, in cgroup v1 and v2 alike."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "nr_throttled":
            return _number(value, int)
    return None


def cgroup_folders(text: str, controller: str, root: Path = CGROUPS) -> list[Path]:
    """Folders that may hold this process's files of `controller`: its own group, then each above it.

    `text` is `/proc/self/cgroup`: lines `0::/path` (version 2) and `4:cpu,cpuacct:/path` (version 1). In a container
    with the host's paths but its own mount only the last, the root of the mount, exists.
    """
    found = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root, root / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / controller, root / controllers]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        found += [mount.joinpath(*parts[:depth]) for mount in mounts for depth in range(len(parts), -1, -1)]
    return list(dict.fromkeys(found))


def process_cpu_s(text: str, ticks_per_s: int) -> tuple[str, int, float] | None:
    """(name, start in ticks, CPU seconds so far) from `/proc/[pid]/stat`; the name may hold blanks and brackets."""
    head, bracket, tail = text.rpartition(")")
    fields = tail.split()
    if not bracket or len(fields) < 20:
        return None
    return head.partition("(")[2], int(fields[19]), (int(fields[11]) + int(fields[12])) / ticks_per_s


def cpus(text: str) -> list[int]:
    """The numbers in a list of CPUs as the kernel writes it: `0-3,8` are 0, 1, 2, 3 and 8."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last if last.isdigit() else first) + 1)
    return found


def size_bytes(text: str) -> int | None:
    """Bytes of a cache's size as the kernel writes it: `32768K`."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(unit.upper())
    return int(number) * scale if scale and number.isdigit() else None


def chosen(text: str) -> str | None:
    """The word in square brackets of a setting's file: `always [madvise] never` → `madvise`."""
    return text.partition("[")[2].partition("]")[0] or None


def peak_bytes() -> int | None:
    """Return the most memory that this process has had resident (`VmHWM`, proc_pid_status(5)); None off Linux."""
    line = next((line for line in read("/proc/self/status").splitlines() if line.startswith("VmHWM:")), "")
    words = line.split()
    return int(words[1]) * 1024 if len(words) == 3 and words[1].isdigit() else None


def read(path: str | Path) -> str:
    """Return a file's text without blanks at its ends; empty when it is missing or may not be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def processes(proc: Path = Path("/proc")) -> Iterator[tuple[int, str]]:
    """Yield (pid, text of its `stat`) of every process that can be seen; nothing where there is no `/proc`."""
    try:
        names = os.listdir(proc)
    except OSError:
        return
    for name in names:
        if name.isdigit() and (text := read(proc / name / "stat")):
            yield int(name), text


class Held:
    """Kernel files held open, so that reading them all again costs a few microseconds each."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._descriptors: list[int] = []
        for path in paths:
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
            except OSError:
                continue

    def texts(self) -> list[str]:
        """Return each opened file's text as it is now; empty for one that cannot be read any more."""
        return [self._text(descriptor) for descriptor in self._descriptors]

    def close(self) -> None:
        """Close the files; more than once does no harm."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    @staticmethod
    def _text(descriptor: int) -> str:
        try:
            return os.pread(descriptor, 4096, 0).decode(errors="replace")
        except OSError:
            return ""


def _number(text: str | None, kind: Callable[[str], T]) -> T | None:
    try:
        return kind(text) if text is not None else None
    except ValueError:
        return None
