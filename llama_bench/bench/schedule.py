"""Who is timed when: groups of arms that fit into memory, and the random order of the arms in each block. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def block_orders(seed: int, cell: str, restart: int, group: int, blocks: int, arms: Sequence[str]) -> list[list[str]]:
    """Draw the order of the arms in each block of one restart.

    The generator is Philox keyed by everything that names the restart, so the same sweep draws the same orders on
    every machine, and no two restarts share one.
    """
    text = f"{seed}/{cell}/{restart}/{group}".encode()
    key = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8")
    generator = np.random.Generator(np.random.Philox(key=key))
    return [[arms[i] for i in generator.permutation(len(arms))] for _ in range(blocks)]


def start_order(seed: int, cell: str, restart: int, group: int, arms: Sequence[str]) -> list[str]:
    """Draw the order in which a restart starts, loads and warms up its arms.

    Whoever touches memory first may get the better pages: the baseline must not always be the one.
    """
    [order] = block_orders(seed, f"{cell}/start", restart, group, 1, arms)
    return order


def groups(arms: Sequence[str], always: Sequence[str], bytes_of: dict[str, int], budget: int) -> list[list[str]]:
    """Split `arms` into groups whose bytes fit into `budget`, each with the arms of `always` (baseline and control).

    Groups are filled in the given order and evened out, so that 9 arms of which 6 fit become two groups of similar
    size. Raises ValueError when the arms of `always` and one more do not fit.
    """
    others = [arm for arm in arms if arm not in always]
    left = budget - sum(bytes_of[arm] for arm in always)
    largest = max((bytes_of[arm] for arm in others), default=0)
    if left < largest or left < 0:
        need = budget - left + largest
        raise ValueError(f"needs {need / 1e9:.1f} GB of memory, {budget / 1e9:.1f} GB are there")
    if not others:
        return [list(always)]
    each = len(others) if largest == 0 else max(1, min(len(others), left // largest))
    count = math.ceil(len(others) / each)
    size = math.ceil(len(others) / count)
    return [[*always, *others[i : i + size]] for i in range(0, len(others), size)]
