from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from llama_bench.errors import WorkError
from llama_bench.model import gguf_tokenizer, text, tokenizer
from llama_bench.sweep import Model, Text

pytestmark = pytest.mark.usefixtures("cache")

SAMPLE = "Hello world!  It's 12345 o'clock,\n\n\tnaïve café, 日本語 🙂 don't DON'T\n"
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


@pytest.fixture(scope="module")
def english() -> str:
    return text.default_text()[:60_000]


def byte_level(english: str, *splits: Any, **options: Any) -> tokenizers.Tokenizer:
    """Return a small byte-level BPE tokenizer, trained; `splits` stand before the bytes."""
    made = tokenizers.Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=not options)])
    made.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([english], trainer)
    return made


def write(path: Path, **metadata: Any) -> Model:
    """Write a GGUF file that holds a tokenizer and hardly more; `metadata` are keys below tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        name = f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        else:
            add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
            add(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Model(hidden_size=16, num_attention_heads=2, source=str(path))


def as_gguf(made: tokenizers.Tokenizer, path: Path, pre: str, **more: Any) -> Model:
    said = json.loads(made.to_str())
    tokens = [token for token, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]
    special = {token["content"] for token in said["added_tokens"]}
    types = [CONTROL if token in special else NORMAL for token in tokens]
    merges = [" ".join(merge) for merge in said["model"]["merges"]]
    return write(path, model="gpt2", pre=pre, tokens=tokens, token_type=types, merges=merges, **more)


def loaded(model: Model) -> tokenizer.Tokenizer:
    found = tokenizer.load(model)
    assert found is not None
    return found


# ── a Hugging Face folder ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, english: str) -> Path:
    (tmp_path / "hf").mkdir()
    made = byte_level(english)
    made.enable_truncation(5)
    made.save(str(tmp_path / "hf" / "tokenizer.json"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    return tmp_path / "hf"


def test_a_folders_tokenizer_is_that_of_its_json_without_its_truncation(folder: Path, english: str) -> None:
    known = loaded(Model(hidden_size=16, num_attention_heads=2, source=str(folder)))
    assert known.encode(SAMPLE) == byte_level(english).encode(SAMPLE).ids
    assert len(known.encode(SAMPLE)) > 5
    assert known.decode(known.encode(SAMPLE)) == SAMPLE


def test_a_folders_files_are_served_as_they_are(folder: Path, tmp_path: Path) -> None:
    known = loaded(Model(hidden_size=16, num_attention_heads=2, source=str(folder)))
    (tmp_path / "served").mkdir()
    assert known.save(tmp_path / "served") == ["tokenizer.json", "tokenizer_config.json"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "served" / name).read_bytes() == (folder / name).read_bytes()


def test_where_there_is_no_tokenizer_there_is_none(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    (tmp_path / "hf").mkdir()
    assert tokenizer.load(Model(**sizes)) is None
    assert tokenizer.load(Model(**sizes, source=str(tmp_path / "hf"))) is None
    assert tokenizer.load(write(tmp_path / "a.gguf")) is None


def test_a_tokenizer_json_that_is_none_is_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkError, match=r"tokenizer.json: "):
        tokenizer.load(Model(hidden_size=16, num_attention_heads=2, source=str(folder), source_sha256="other"))


# ── byte-level BPE in a GGUF file ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pre", "splits", "options"),
    [
        ("gpt-2", [], {}),
        ("default", [], {}),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True)], {}),
        (
            "llama-bpe",
            [pre_tokenizers.Split(tokenizers.Regex(gguf_tokenizer.LLAMA3), "isolated")],
            {"ignore_merges": True},
        ),
    ],
)
def test_a_gguf_file_splits_text_as_the_tokenizer_that_it_was_made_of(
    tmp_path: Path, english: str, pre: str, splits: list[Any], options: dict[str, Any]
) -> None:
    made = byte_level(english, *splits, **options)
    known = loaded(as_gguf(made, tmp_path / "a.gguf", pre))
    for words in (SAMPLE, english[:20_000], "", " ", "<|im_start|>user\n1234<|im_end|>"):
        assert known.encode(words) == made.encode(words).ids
        assert known.decode(known.encode(words)) == words


def test_llama3_takes_numbers_three_digits_at_a_time_and_smollm_one(tmp_path: Path, english: str) -> None:
    def numbers(pre: str) -> list[str]:
        facts = gguf_tokenizer.Facts("gpt2", pre, ["a"], [1], [], [], {}, False, False, False, None)
        split = gguf_tokenizer.build(facts).pre_tokenizer.pre_tokenize_str("12345")
        return [part for part, _ in split]

    assert numbers("llama-bpe") == ["123", "45"]
    assert numbers("smollm") == list("12345")
    assert numbers("gpt-2") == ["12345"]


def test_a_served_gguf_model_has_its_tokenizer_and_its_chat_template(tmp_path: Path, english: str) -> None:
    from transformers import AutoTokenizer

    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 2}
    made = byte_level(english)
    known = loaded(as_gguf(made, tmp_path / "a.gguf", "gpt-2", **special, add_bos_token=True, chat_template=TEMPLATE))
    (tmp_path / "served").mkdir()
    names = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert known.save(tmp_path / "served") == names
    served = AutoTokenizer.from_pretrained(tmp_path / "served")
    assert served(SAMPLE).input_ids == known.encode(SAMPLE, start=True) == [1, *known.encode(SAMPLE)]
    assert (served.bos_token, served.eos_token, served.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    chat = served.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert json.loads((tmp_path / "served" / "generation_config.json").read_text()) == ids


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pre": "tekken"}, "tokenizer: pre-tokenizer 'tekken' is not one of these: default, gpt-2, "),
        ({"model": "bert"}, "tokenizer: kind 'bert' is not one of these: gpt2, llama"),
        ({"model": "llama"}, "tokenizer: 0 scores for 3 tokens"),
        ({"merges": ["a b"]}, "tokenizer: Error while initializing BPE: Token `b` out of vocabulary"),
        ({"token_type": [1, 1]}, "tokenizer: 2 types for 3 tokens"),
    ],
)
def test_a_kind_that_is_not_known_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    whole = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "c", "d"], "merges": []}
    model = write(tmp_path / "a.gguf", **{key: value for key, value in {**whole, **changed}.items() if value != []})
    with pytest.raises(WorkError) as caught:
        tokenizer.load(model)
    assert str(caught.value).startswith(f"{tmp_path}/a.gguf: {message}")
    assert len(str(caught.value).splitlines()) == 1


# ── SentencePiece in a GGUF file ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pieces(english: str) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types as llama.cpp writes those of a Llama 2 tokenizer: later merges have lower scores."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.train_from_iterator([english], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = [token for token, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]
    learned = [token for token in learned if "\n" not in token]  # which is no token of Llama's, but a byte
    single, merged = [t for t in learned if len(t) == 1], [t for t in learned if len(t) > 1]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*first, *merged, *single]
    scores = (
        [0.0] * len(first) + [-float(i) for i in range(len(merged))] + [-1e3] * (len(tokens) - len(first) - len(merged))
    )
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - len(first))]
    return tokens, scores, types


def sentencepiece(words: str, tokens: list[str], scores: list[float]) -> list[int]:
    """Return the tokens by SentencePiece's own rule: merge the neighbours whose token has the highest score."""
    known = {token: score for token, score in zip(tokens, scores, strict=True)}
    parts = list("▁" + words.replace(" ", "▁"))
    while True:
        pairs = [(known[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in known]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = {token: i for i, token in enumerate(tokens)}
    return [i for part in parts for i in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


def test_scores_merge_as_sentencepiece_merges(tmp_path: Path, english: str, pieces: Any) -> None:
    tokens, scores, types = pieces
    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    model = write(tmp_path / "a.gguf", model="llama", tokens=tokens, scores=scores, token_type=types, **special)
    known = loaded(model)
    for words in (english[:3_000], SAMPLE, "x"):
        assert known.encode(words) == sentencepiece(words, tokens, scores)
        assert known.decode(known.encode(words)) == words
    assert known.encode("a", start=True) == [1, *known.encode("a")]  # where a file does not say, with BOS


def test_a_served_sentencepiece_tokenizer_is_the_same(tmp_path: Path, pieces: Any) -> None:
    from transformers import AutoTokenizer

    tokens, scores, types = pieces
    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    model = write(tmp_path / "a.gguf", model="llama", tokens=tokens, scores=scores, token_type=types, **special)
    (tmp_path / "served").mkdir()
    loaded(model).save(tmp_path / "served")
    served = AutoTokenizer.from_pretrained(tmp_path / "served")
    assert served(SAMPLE).input_ids == loaded(model).encode(SAMPLE, start=True)


def test_text_is_put_into_tokens_with_the_models_own_start(tmp_path: Path, pieces: Any) -> None:
    tokens, scores, types = pieces
    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    model = write(tmp_path / "a.gguf", model="llama", tokens=tokens, scores=scores, token_type=types, **special)
    found = text.tokens(model, Text(), 300)
    assert found[0] == 1 and found.tolist() == loaded(model).encode(text.default_text(), start=True)[:300]
    assert text.default_text().startswith(text.text_of(model, found[1:]).strip())
