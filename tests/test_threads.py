from __future__ import annotations

import threading

import numpy as np
import pytest

from llama_bench import threads


@pytest.fixture(autouse=True)
def three(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")


def test_as_many_threads_as_ray_says_else_as_many_as_cpus(monkeypatch):
    assert threads.count() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.count() >= 1


def test_results_come_in_the_order_of_the_items_and_at_once():
    met = threading.Barrier(3, timeout=20)

    def work(item: int) -> int:
        met.wait()  # nobody gets past it alone
        return 2 * item

    assert threads.each(work, [5, 1, 3]) == [10, 2, 6]


def test_the_error_of_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        threads.each(lambda item: 1 // item, [2, 1, 0, 1])


def test_rows_are_worked_on_once_each_in_pieces(monkeypatch):
    monkeypatch.setattr(threads, "PIECE_BYTES", 100)
    seen = np.zeros((11, 5), np.float32)

    def work(start: int, end: int) -> None:
        assert end - start <= 5
        seen[start:end] += 1

    threads.rows(work, seen.shape, seen.itemsize)
    assert (seen == 1).all()


def test_what_is_made_ahead_comes_in_order_and_no_further_than_asked():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    coming = threads.ahead(items(), most=1)
    assert next(coming) == 0
    coming.close()
    assert len(made) <= 4  # one given out, one waiting, one held by the thread, one begun as it ended
    assert list(threads.ahead(range(7), most=2)) == list(range(7))


def test_an_error_of_what_is_made_ahead_comes_in_its_place():
    def items():
        yield 1
        raise ValueError("torn")

    coming = threads.ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="torn"):
        next(coming)


def test_the_room_in_a_file_is_written_in_place(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"a" * 10)
    with threads.room(path, 5000, 300) as given:
        given[:] = 7
    with threads.room(path, 10, 3) as given:
        given[:] = 9
    found = path.read_bytes()
    assert found == b"a" * 10 + b"\x09" * 3 + b"\0" * (5000 - 13) + b"\x07" * 300


def test_a_copy_of_a_range_of_a_file_is_that_range_or_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "PIECE_BYTES", 100)
    path, data = tmp_path / "data", np.random.default_rng(0).integers(0, 256, 1234).astype(np.uint8)
    data.tofile(path)
    target = np.zeros(1000, np.uint8)
    threads.copy(path, 200, target)
    np.testing.assert_array_equal(target, data[200:1200])
    with pytest.raises(OSError, match="ends before byte 1300"):
        threads.copy(path, 300, target)


@pytest.mark.parametrize("shape", [(1, 1), (64, 256), (65, 257), (3, 700), (700, 3)])
def test_a_turned_matrix_is_its_transpose(shape):
    source = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    target = np.empty(shape[::-1], np.float32)
    threads.turned(source, target)
    np.testing.assert_array_equal(target, source.T)
