"""A graph without a cache scores text in windows of its own length, and the next run is as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llama_bench import engines
from llama_bench.engines import TimedSession
from llama_bench.errors import WorkError
from llama_bench.sweep import Session, Target, Workload

PREFILL = Workload(kind="prefill", batch=2, sequence=9)


def opened(variant: Any, io: str) -> TimedSession:
    chosen = engines.settings("onnxruntime", Session(io=io), Target(tag="bench_cpu", threads=1), 1)
    return engines.open_session(variant.folder, chosen, variant.task(PREFILL))


@pytest.mark.parametrize("io", ["device", "host"])
def test_scoring_gives_torchs_logits_and_leaves_no_trace(static: Any, growing: Any, io: str) -> None:
    session = opened(static, io)
    given = static.task(PREFILL).inputs["input_ids"].copy()
    session.run()
    before = session.outputs()
    for count in (1, 2, 5):  # of a graph of two rows
        windows = np.random.default_rng(count).integers(0, 128, size=(count, 9))
        found = list(session.score(windows))
        assert len(found) == count
        np.testing.assert_allclose(found, growing.logits(windows), rtol=1e-5, atol=1e-5)
        with pytest.raises(WorkError, match="no outputs before the first run"):
            session.outputs()
        session.run()
        for name, values in session.outputs().items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)
    np.testing.assert_array_equal(session._feed["input_ids"], given)


def test_a_scoring_that_nobody_reads_to_its_end_leaves_no_trace_either(static: Any) -> None:
    session = opened(static, "device")
    session.run()
    before = session.outputs()["logits"]
    scored = session.score(np.random.default_rng(0).integers(0, 128, size=(6, 9)))
    next(scored)
    session.run()
    np.testing.assert_array_equal(session.outputs()["logits"], before)


def test_shorter_windows_are_filled_up_and_longer_ones_refused(static: Any, growing: Any) -> None:
    session = opened(static, "device")
    windows = np.random.default_rng(3).integers(0, 128, size=(3, 5))
    found = list(session.score(windows))
    assert found[0].shape == (5, 128)
    np.testing.assert_allclose(found, growing.logits(windows), rtol=1e-5, atol=1e-5)
    with pytest.raises(WorkError, match="windows of 10 tokens do not fit into a graph of 9"):
        next(session.score(np.zeros((1, 10), np.int64)))
