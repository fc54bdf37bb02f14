"""Parsers of the kernel's text, on text that kernels wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_bench.bench import proc

STAT = """\
cpu  1370386 41844 237676 734255 3669 0 1293 6040 0 0
cpu0 658173 14861 114373 405546 836 0 440 2994 0 0
cpu1 712213 26982 123303 328709 2832 0 853 3046 0 0
intr 61225327 0 9 0 0
"""  # a virtual machine with 2 CPUs, Linux 6.18
ZEROS = "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n"  # gVisor
OLD = "cpu 10132153 290696 3084719 46828483\n"  # proc(5): before Linux 2.5.41 there are four columns
PRESSURE = """\
some avg10=0.80 avg60=1.06 avg300=1.91 total=2242193212
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""  # /proc/pressure/cpu, Linux 6.18
CPU_STAT_V1 = "nr_periods 0\nnr_throttled 0\nthrottled_time 0\nnr_bursts 0\nburst_time 0\n"
CPU_STAT_V2 = """\
usage_usec 32489226
user_usec 27612351
system_usec 4876874
nice_usec 0
nr_periods 391
nr_throttled 57
throttled_usec 4051437
nr_bursts 0
burst_usec 0
"""
CGROUP_V1 = "9:name=systemd:/\n4:memory:/outer/inner\n2:cpu,cpuacct:/\n0::/\n"
CGROUP_V2 = "0::/kubepods.slice/pod7.slice/container\n"


def test_cpu_time_is_busy_idle_and_stolen_ticks_of_the_first_line() -> None:
    assert proc.cpu_time(STAT) == proc.CpuTime(1370386 + 41844 + 237676 + 0 + 1293, 734255 + 3669, 6040)


def test_cpu_time_of_an_old_kernel_has_nothing_stolen() -> None:
    assert proc.cpu_time(OLD) == proc.CpuTime(10132153 + 290696 + 3084719, 46828483, 0)


@pytest.mark.parametrize("text", ["", ZEROS, "cpu", "cpu a b c d", "intr 1 2 3 4 5"])
def test_cpu_time_that_is_not_told_is_none(text: str) -> None:
    assert proc.cpu_time(text) is None


def test_the_share_stolen_leaves_idle_time_out() -> None:
    first, last = proc.CpuTime(1000, 1000, 10), proc.CpuTime(1090, 9000, 20)
    assert proc.stolen_share(first, last) == pytest.approx(0.1)


def test_a_single_stolen_tick_is_surely_nothing() -> None:
    first, last = proc.CpuTime(0, 0, 0), proc.CpuTime(19, 0, 1)
    assert proc.stolen_share(first, last) == pytest.approx(0.05)
    assert proc.stolen_share(first, last, surely=True) == 0


def test_the_share_stolen_is_unknown_without_readings_without_work_and_when_counters_go_back() -> None:
    some = proc.CpuTime(100, 100, 10)
    assert proc.stolen_share(None, some) is None
    assert proc.stolen_share(some, None) is None
    assert proc.stolen_share(some, some) is None
    assert proc.stolen_share(some, proc.CpuTime(120, 100, 9)) is None


def test_pressure_is_read_from_the_line_of_some_task() -> None:
    assert proc.stalled_us(PRESSURE) == 2242193212
    assert proc.stalled_share(PRESSURE) == pytest.approx(0.008)


@pytest.mark.parametrize("text", ["", "full avg10=0.00 total=0", "some", "some avg10=x total=y"])
def test_pressure_that_is_not_told_is_none(text: str) -> None:
    assert proc.stalled_us(text) is None
    assert proc.stalled_share(text) is None


def test_throttled_periods_are_read_from_both_versions_of_cgroups() -> None:
    assert proc.throttled(CPU_STAT_V1) == 0
    assert proc.throttled(CPU_STAT_V2) == 57
    assert proc.throttled("usage_usec 12\nuser_usec 3\n") is None  # the root group of version 2


def test_the_folders_of_a_controller_go_from_the_own_group_up(tmp_path: Path) -> None:
    assert proc.cgroup_folders(CGROUP_V2, "cpu", tmp_path)[:4] == [
        tmp_path / "kubepods.slice/pod7.slice/container", tmp_path / "kubepods.slice/pod7.slice",
        tmp_path / "kubepods.slice", tmp_path,
    ]  # fmt: skip
    v1 = proc.cgroup_folders(CGROUP_V1, "memory", tmp_path)
    assert v1[:3] == [tmp_path / "memory/outer/inner", tmp_path / "memory/outer", tmp_path / "memory"]
    assert tmp_path / "cpu,cpuacct" in proc.cgroup_folders(CGROUP_V1, "cpu", tmp_path)
    assert proc.cgroup_folders("", "cpu", tmp_path) == []


def test_a_process_with_blanks_and_brackets_in_its_name_is_read() -> None:
    text = "77 (a (b) c) R 1 77 77 0 -1 4194304 900 0 0 0 250 50 0 0 20 0 4 0 12345 1000000 500"
    assert proc.process_cpu_s(text, 100) == ("a (b) c", 12345, 3.0)
    assert proc.process_cpu_s("", 100) is None
    assert proc.process_cpu_s("77 (half) R 1", 100) is None


def test_this_process_is_among_the_processes_with_its_own_cpu_time() -> None:
    found = dict(proc.processes())
    name, _, spent = proc.process_cpu_s(found[os.getpid()], os.sysconf("SC_CLK_TCK")) or ("", 0, 0.0)
    assert name
    assert spent <= sum(os.times()[:2]) + 0.02


def test_lists_of_cpus_sizes_and_chosen_settings_are_read() -> None:
    assert proc.cpus("0-3,8") == [0, 1, 2, 3, 8]
    assert proc.cpus("") == []
    assert proc.size_bytes("32768K") == 32 * 2**20
    assert proc.size_bytes("") is None
    assert proc.chosen("always [madvise] never") == "madvise"
    assert proc.chosen("") is None


def test_a_held_file_gives_its_text_as_it_is_now_and_a_missing_one_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("one")
    held = proc.Held([tmp_path / "missing", tmp_path / "there"])
    assert held.texts() == ["one"]
    (tmp_path / "there").write_text("two")
    assert held.texts() == ["two"]
    held.close()
    held.close()
    assert held.texts() == []
