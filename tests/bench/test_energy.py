"""The GPU's energy counter around slots: a plain class that answers as NVML's reference says, and a real GPU."""

from __future__ import annotations

import time
from typing import Any

import pytest

from llama_bench.bench import nvml
from llama_bench.bench.energy import Meter, Spent, spent


def test_joules_between_two_looks_are_the_counters_difference(library: Any) -> None:
    meter = Meter(True)
    first = meter.look()
    library.energy_mj += 42_000
    time.sleep(0.01)
    found = spent(first, meter.look())
    assert found.energy_j == pytest.approx(42.0)
    assert found.energy_s is not None
    assert 0.01 <= found.energy_s < 1
    meter.close()
    meter.close()
    assert library.opened == 0
    assert meter.look() is None


def test_a_gpu_that_does_not_count_tells_nothing(library: Any) -> None:
    library.energy_mj = None
    assert Meter(True).look() is None
    assert spent(None, (1.0, 5.0)) == spent((1.0, 5.0), None) == Spent(None, None)


def test_a_counter_that_went_back_tells_nothing() -> None:
    assert spent((1.0, 100.0), (2.0, 4.0)) == Spent(None, None)


def test_on_a_cpu_nobody_asks(library: Any) -> None:
    meter = Meter(False)
    assert meter.look() is None
    assert library.asked == []
    meter.close()


@pytest.mark.gpu
@pytest.mark.skipif(not nvml.facts(), reason="no NVIDIA GPU here")
def test_a_real_gpu_uses_a_plausible_power_in_half_a_second() -> None:
    meter = Meter(True)
    first = meter.look()
    time.sleep(0.5)
    found = spent(first, meter.look())
    meter.close()
    assert found.energy_j is not None
    assert found.energy_s is not None
    assert 5 < found.energy_j / found.energy_s < 2000
