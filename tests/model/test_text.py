from __future__ import annotations

import hashlib

import numpy as np
import pytest

from llama_bench.errors import InputError
from llama_bench.model import text
from llama_bench.sweep import Text


def test_the_default_text_is_long_english_and_always_the_same():
    words = text.default_text()
    assert len(words) > 300_000 and words.count(" the ") > 1_000
    assert text.sha256(Text()) == hashlib.sha256(words.encode()).hexdigest()
    assert text.read(Text()) == words


def test_without_a_tokenizer_the_tokens_are_bytes_within_the_vocabulary(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("aé\n", encoding="utf-8")
    found = text.tokens(tiny(vocab_size=96), Text(file=str(tmp_path / "a.txt")), 4)
    assert found.dtype == np.int64
    assert found.tolist() == [byte % 96 for byte in "aé\n".encode()]
    assert text.text_of(tiny(), [1, 2]) is None


def test_a_text_with_too_few_tokens_says_how_many_it_has(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(InputError) as caught:
        text.tokens(tiny(), Text(file=str(tmp_path / "a.txt")), 6)
    assert str(caught.value) == f"{tmp_path}/a.txt: has 5 tokens of model h32-a4-l2, and 6 are needed"
    with pytest.raises(InputError, match=r"^the help texts of Python: has "):
        text.tokens(tiny(), Text(), 10**8)


def test_a_text_that_is_gone_or_no_text_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a.txt: No such file or directory"):
        text.read(Text(file=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"a.txt: not UTF-8 text \(byte 0xff\)"):
        text.read(Text(file=str(tmp_path / "a.txt")))


def test_a_text_that_changed_since_the_sweep_was_read_is_refused_and_line_ends_do_not_matter(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\ntwo\rthree\n")
    read = hashlib.sha256(file.read_bytes()).hexdigest()
    assert text.read(Text(file=str(file), file_sha256=read)) == "one\ntwo\nthree\n"
    file.write_bytes(b"four\n")
    with pytest.raises(InputError, match=rf"a.txt: its SHA-256 is .*, and was {read} when the sweep was read"):
        text.read(Text(file=str(file), file_sha256=read))


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts", "scored"),
    [
        (8, 8, 7, [0], [7]),
        (15, 8, 7, [0, 7], [7, 7]),
        (14, 8, 3, [0, 3, 6], [7, 3, 3]),
        (16, 8, 3, [0, 3, 6], [7, 3, 3]),
        (5, 2, 1, [0, 1, 2, 3], [1, 1, 1, 1]),
    ],
)
def test_windows_slide_by_the_stride(length, window, stride, starts, scored):
    tokens = np.arange(100, 100 + length)
    found, counted = text.windows(tokens, window, stride)
    assert found.tolist() == [tokens[start : start + window].tolist() for start in starts]
    assert counted.tolist() == scored
    assert found.dtype == counted.dtype == np.int64


@pytest.mark.parametrize("stride", [1, 3, 8, 15])
def test_every_token_but_the_first_is_scored_once_as_in_hugging_faces_guide(stride):
    """https://huggingface.co/docs/transformers/perplexity: `trg_len = end_loc - prev_end_loc`, the rest is masked."""
    window, length = 16, 16 + 5 * stride
    found, counted = text.windows(np.arange(length), window, stride)
    ours = [int(token) for row, count in zip(found, counted, strict=True) for token in row[window - count :]]
    theirs, previous = [], 1
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        theirs += range(previous, end)
        previous = end
        if end == length:
            break
    assert ours == theirs == list(range(1, length))


@pytest.mark.parametrize("predictions", [1, 15, 16, 40, 41])
def test_just_enough_tokens_are_asked_for(predictions):
    count = text.needed(predictions, 16, 4)
    assert text.windows(np.arange(count), 16, 4)[1].sum() >= predictions
    fewer = text.windows(np.arange(count - 4), 16, 4)[1].sum() if count > 16 else 0
    assert fewer < predictions


@pytest.mark.parametrize(("window", "stride"), [(8, 0), (8, 8), (8, -1), (1, 1)])
def test_a_stride_that_would_leave_tokens_out_is_refused(window, stride):
    with pytest.raises(InputError, match=f"stride {stride}: must be from 1 to window − 1, which is {window - 1}"):
        text.windows(np.arange(20), window, stride)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(InputError, match="a text of 7 tokens is shorter than a window of 8"):
        text.windows(np.arange(7), 8, 7)
