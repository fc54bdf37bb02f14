"""The tokenizer in a GGUF file's metadata, built with the package `tokenizers` as Hugging Face would have it.

Kinds (`tokenizer.ggml.model`): `gpt2` is byte-level BPE with merges, `llama` SentencePiece BPE with scores.
Reference: llama.cpp's llama-vocab.cpp, whose regular expressions `SPLITS` are those of the models' tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = SHORTENED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGIT = r"\p{N}"

SPLITS: dict[str, tuple[str, ...]] = {
    "default": (GPT2,),
    "gpt-2": (GPT2,),
    "mpt": (GPT2,),
    "olmo": (GPT2,),
    "smollm": (DIGIT, GPT2),
    "starcoder": (DIGIT, GPT2),
    "refact": (DIGIT, GPT2),
    "codeshell": (DIGIT, GPT2),
    "command-r": (DIGIT, GPT2),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "qwen2": (QWEN2,),
    "stablelm2": (QWEN2,),
}
"""`tokenizer.ggml.pre` → how text is split, one expression after another, before bytes are merged within the parts."""

WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # a part that is a token is not built from merges

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Types of tokens (llama.cpp's `llama_token_type`) that are not ordinary ones."""

SPACE = "▁"  # what SentencePiece writes for a space


@dataclass(frozen=True, slots=True)
class Facts:
    """What the metadata says of a tokenizer; the ids of special tokens by llama.cpp's names."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None

    @classmethod
    def of(cls, field: Callable[..., Any]) -> Self:
        """Return the facts; `field(key, default)` is the metadata at `key`."""
        model, pre = field("tokenizer.ggml.model", ""), field("tokenizer.ggml.pre", "default")
        tokens = field("tokenizer.ggml.tokens")
        names = ("bos", "eos", "eot", "unknown", "padding")
        ids = {name: field(f"tokenizer.ggml.{name}_token_id") for name in names}
        sentencepiece = model == "llama"
        return cls(
            model,
            pre,
            tokens,
            field("tokenizer.ggml.token_type") or [1] * len(tokens),
            field("tokenizer.ggml.scores") or [],
            field("tokenizer.ggml.merges") or [],
            {name: found for name, found in ids.items() if found is not None and found < len(tokens)},
            # where a file does not say, llama.cpp begins the texts of these with BOS
            bool(field("tokenizer.ggml.add_bos_token", sentencepiece or pre in WHOLE_WORDS)),
            bool(field("tokenizer.ggml.add_eos_token", False)),
            bool(field("tokenizer.ggml.add_space_prefix", sentencepiece)),
            field("tokenizer.chat_template"),
        )

    def token(self, name: str) -> str | None:
        """Return the special token that llama.cpp calls `name`."""
        return self.tokens[self.special[name]] if name in self.special else None


def build(facts: Facts) -> tokenizers.Tokenizer:
    """Return the tokenizer. Raises ValueError for a kind that is not known here."""
    from tokenizers import AddedToken, processors

    if facts.model not in BUILD:
        raise ValueError(f"kind {facts.model!r} is not one of these: {', '.join(BUILD)}")
    if len(facts.types) != len(facts.tokens):
        raise ValueError(f"{len(facts.types)} types for {len(facts.tokens)} tokens")
    built = BUILD[facts.model](facts)
    kinds = list(zip(facts.tokens, facts.types, strict=True))
    built.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token, kind in kinds if kind in (CONTROL, UNKNOWN)]
    )
    built.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED])
    before = facts.token("bos") if facts.add_bos else None
    after = facts.token("eos") if facts.add_eos else None
    if before or after:
        pieces = [piece for piece in (before, "$A", after) if piece]
        ends = [(piece, built.token_to_id(piece)) for piece in {before, after} if piece]
        built.post_processor = processors.TemplateProcessing(single=pieces, pair=None, special_tokens=ends)
    return built


def _byte_level(facts: Facts) -> tokenizers.Tokenizer:
    """Return byte-level BPE: text is split, and within the parts bytes are merged by rank."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if facts.pre not in SPLITS:
        raise ValueError(f"pre-tokenizer {facts.pre!r} is not one of these: {', '.join(SPLITS)}")
    merges = [_pair(merge) for merge in facts.merges]
    ranks = {token: i for i, token in enumerate(facts.tokens)}
    built = tokenizers.Tokenizer(models.BPE(ranks, merges, ignore_merges=facts.pre in WHOLE_WORDS))
    splits = [pre_tokenizers.Split(tokenizers.Regex(words), "isolated") for words in SPLITS[facts.pre]]
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=facts.add_space_prefix, use_regex=False)]
    )
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(facts: Facts) -> tokenizers.Tokenizer:
    """Return SentencePiece BPE with bytes for unknown characters, as Hugging Face converts Llama's tokenizer.model."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    unknown = facts.token("unknown")
    vocabulary = {token: i for i, token in enumerate(facts.tokens)}
    merges = _merges(facts, vocabulary)
    built = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in facts.types)
    )
    spaces = [normalizers.Replace(" ", SPACE)]
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *spaces] if facts.add_space_prefix else list(spaces)
    )
    built.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if facts.add_space_prefix else []),
        ]
    )
    return built


BUILD: dict[str, Callable[[Facts], tokenizers.Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
"""`tokenizer.ggml.model` → what builds it."""


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _merges(facts: Facts, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges that scores stand for: every split of a token into two tokens, best score first.

    SentencePiece merges the neighbours that make the token of the highest score. Ties go to the shorter parts, as in
    transformers' `generate_merges`.
    """
    if facts.merges:
        return [_pair(merge) for merge in facts.merges]
    if len(facts.scores) != len(facts.tokens):
        raise ValueError(f"{len(facts.scores)} scores for {len(facts.tokens)} tokens")
    found: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(facts.tokens, facts.scores, facts.types, strict=True):
        if kind in (CONTROL, UNKNOWN, BYTE):
            continue
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def files(facts: Facts) -> dict[str, Mapping[str, Any]]:
    """Return what else a served model needs: tokenizer_config.json and generation_config.json, by name."""
    ids = {
        "bos_token_id": facts.special.get("bos"),
        "eos_token_id": facts.special.get("eos"),
        "pad_token_id": facts.special.get("padding"),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": facts.token("bos"),
        "eos_token": facts.token("eos"),
        "unk_token": facts.token("unknown"),
        "pad_token": facts.token("padding"),
        "chat_template": facts.chat_template,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer_config.json": {key: value for key, value in config.items() if value is not None},
        "generation_config.json": {key: value for key, value in ids.items() if value is not None},
    }
