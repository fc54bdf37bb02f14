"""What an arm generated, beside torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from llama_bench.cluster.texts import agreed, texts
from llama_bench.sweep import Model


def test_agreement_ends_at_the_first_difference() -> None:
    assert agreed([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    assert agreed([1, 2], [1, 2]) == 2
    assert agreed([7], [1]) == 0


def test_a_sequence_is_described_by_its_tokens_and_how_many_agree_with_torch(tmp_path: Path) -> None:
    reference = tmp_path / "reference.safetensors"
    save_file({"tokens": np.array([[5, 6, 7], [8, 9, 1]])}, reference)
    model = Model(hidden_size=16, num_attention_heads=2, cache=True)
    found = texts(model, {"input_ids": np.array([[1, 2], [3, 4]])}, reference)(1, [8, 0, 1])
    assert found == {"sequence": 1, "tokens": [8, 0, 1], "agreed": 1, "prompt": None, "text": None}
