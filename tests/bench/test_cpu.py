"""What the CPUs are: folders as Linux lays them out, and this machine's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_bench.bench import cpu, proc

INFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
microcode\t: 0x1000065
cpu MHz\t\t: 2596.122
cache size\t: 1024 KB
flags\t\t: fpu vme hypervisor avx512f
"""
CGROUP = "0::/pod/container\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the one with the CPUs, all of whose files the test writes."""
    monkeypatch.setattr(cpu, "CPUS", tmp_path)
    return tmp_path


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a container's group in an otherwise empty hierarchy."""
    folders = proc.cgroup_folders
    monkeypatch.setattr(cpu.proc, "cgroup_folders", lambda text, controller: folders(CGROUP, controller, tmp_path))
    (tmp_path / "pod/container").mkdir(parents=True)
    return tmp_path / "pod/container"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_the_last_level_caches_are_added_once_each(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "allowed", lambda: [0, 1, 2])
    for number, shared in enumerate(("0-1", "0-1", "2-3")):
        for index, (level, size) in enumerate((("1", "48K"), ("1", "32K"), ("2", "1024K"), ("3", "32768K"))):
            cache = system / f"cpu{number}/cache/index{index}"
            write(cache / "level", level)
            write(cache / "size", size)
            write(cache / "shared_cpu_list", shared if level == "3" else str(number))
    assert cpu.cache_bytes() == 2 * 32 * 2**20


def test_where_no_file_can_be_seen_nothing_is_made_up(system: Path) -> None:
    found = cpu.facts()
    unseen = ("sockets", "isolated_cpus", "governor", "frequency_driver", "min_mhz", "max_mhz", "boost", "cache_bytes")
    assert [found[key] for key in unseen] == [None] * len(unseen)
    assert found["physical_cores"] >= 1


@pytest.mark.parametrize(
    ("file", "text", "boost"),
    [
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
        ("intel_pstate/no_turbo", "1", False),
        ("intel_pstate/no_turbo", "0", True),
    ],
)
def test_boost_is_read_as_amd_and_intel_write_it(system: Path, file: str, text: str, boost: bool) -> None:
    write(system / file, text)
    assert cpu.boost() is boost


def test_frequencies_are_megahertz(system: Path) -> None:
    write(system / "cpu0/cpufreq/cpuinfo_max_freq", "3700000")
    write(system / "cpu0/cpufreq/scaling_driver", "acpi-cpufreq")
    write(system / "cpu1/topology/physical_package_id", "1")
    write(system / "cpu0/topology/physical_package_id", "0")
    found = cpu.facts()
    assert (found["max_mhz"], found["frequency_driver"], found["sockets"]) == (3700.0, "acpi-cpufreq", 2)


def test_the_name_comes_from_the_systems_own_list() -> None:
    assert cpu.name(INFO) == "AMD EPYC"
    assert cpu.name("")


def test_the_least_quota_of_all_groups_binds(cgroup: Path) -> None:
    assert cpu.quota() is None
    write(cgroup / "cpu.max", "max 100000")
    assert cpu.quota() is None
    write(cgroup / "cpu.max", "400000 100000")
    assert cpu.quota() == 4.0
    write(cgroup.parent / "cpu.max", "150000 100000")
    assert cpu.quota() == 1.5
    assert cpu.physical_cores() == 1


def test_a_quota_of_the_first_version_is_read_and_minus_one_is_none(cgroup: Path) -> None:
    write(cgroup / "cpu.cfs_period_us", "100000")
    write(cgroup / "cpu.cfs_quota_us", "-1")
    assert cpu.quota() is None
    write(cgroup / "cpu.cfs_quota_us", "250000")
    assert cpu.quota() == 2.5


def test_the_nearest_group_that_says_something_is_heard(cgroup: Path) -> None:
    assert cpu.cgroup_text("cpuset", "cpuset.cpus.effective") is None
    write(cgroup.parent / "cpuset.cpus.effective", "0-7")
    assert cpu.cgroup_text("cpuset", "cpuset.cpus.effective") == "0-7"
    write(cgroup / "cpuset.cpus.effective", "2-3")
    assert cpu.cgroup_text("cpuset", "cpuset.cpus.effective") == "2-3"


def test_the_cpus_of_this_machine_are_told_as_the_system_tells_them() -> None:
    found = cpu.facts()
    assert found["logical_cores"] == os.cpu_count()
    assert found["affinity"] == len(cpu.allowed())
    clock = cpu.mhz()
    assert clock is None or 100 < clock < 10_000
