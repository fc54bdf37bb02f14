from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llama_bench.errors import InputError, WorkError
from llama_bench.model import cached, source, weights
from llama_bench.sweep import Model


@pytest.fixture
def folder(tmp_path, llama_of, cache) -> Path:
    llama_of().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def described(words: str, base: Path = Path()) -> Model:
    found = source.describe(words, base)
    return Model(**found.config, source=found.source, source_sha256=found.sha256, name=found.name)


# ── where it lies ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_path_is_relative_to_its_base_and_may_begin_at_home(folder, monkeypatch):
    (folder.parent / "sweeps").mkdir()
    monkeypatch.setenv("HOME", str(folder.parent))
    for words, base in (
        ("hf", folder.parent),
        ("../hf/", folder.parent / "sweeps"),
        ("~/hf", Path("/")),
        (str(folder), Path()),
    ):
        assert source.locate(words, base) == (str(folder), folder, "hf")


def test_what_is_not_there_is_named_with_its_nearest_neighbour(folder):
    for words in ("hg", "./hg", "hf.gguf", "weights/x.whl", "a/b.zip"):
        with pytest.raises(InputError, match="no such file or folder"):
            source.describe(words, folder.parent)
    with pytest.raises(InputError) as caught:
        source.describe("hff", folder.parent)
    assert str(caught.value) == f"{folder.parent}/hff: no such file or folder; did you mean 'hf'?"


def test_a_hub_name_is_kept_with_its_commit(folder, monkeypatch):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert {"config.json", "tokenizer.json"} <= set(allow_patterns)
        snapshot = folder.parent / "0123abc"
        if not snapshot.exists():
            folder.rename(snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = described("org/Some-Llama", folder.parent)
    assert (model.source, model.name) == ("org/Some-Llama@0123abc", "Some-Llama")
    assert dict(weights.load(model)).keys() == weights.shapes(model).keys()
    assert described("org/Some-Llama@v1.0") == model
    assert asked[0] == ("org/Some-Llama", None)
    assert ("org/Some-Llama", "0123abc") in asked and ("org/Some-Llama", "v1.0") in asked


def test_without_a_network_a_hub_name_is_refused_in_one_line(tmp_path):
    program = (
        "from pathlib import Path; from llama_bench.errors import InputError; from llama_bench.model import source\n"
        "try: source.locate('org/none', Path())\n"
        "except InputError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    [line] = done.stdout.splitlines()
    assert line.startswith("org/none: not a folder here, and not to be had from the hub: LocalEntryNotFoundError: ")


def test_without_its_library_a_hub_name_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"org/none: not a folder here, .* pip install huggingface_hub$"):
        source.locate("org/none", tmp_path)


# ── what lies there ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_hash_is_of_the_content_and_not_of_the_place(folder, tmp_path, llama_of):
    one = source.describe("hf", tmp_path)
    llama_of().save_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("of no matter")
    assert source.describe("copy", tmp_path).sha256 == one.sha256
    (tmp_path / "copy" / "tokenizer.json").write_text("{}")
    assert source.describe("copy", tmp_path).sha256 != one.sha256


def test_weights_that_changed_since_the_sweep_was_read_are_refused(folder, llama_of):
    model = described(str(folder))
    llama_of(initializer_range=0.1).save_pretrained(folder)
    with pytest.raises(
        WorkError, match=f"hf: changed since the sweep was read: hash .*, not {model.source_sha256[:16]}"
    ):
        next(weights.load(model))


def test_weights_come_one_at_a_time_in_the_order_of_the_shapes(folder, monkeypatch):
    from llama_bench.model.huggingface import Folder

    read, plain = [], Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, name: (read.append(name), plain(self, name))[1])
    model = described(str(folder))
    loaded = weights.load(model)
    next(loaded)
    assert read == ["model.embed_tokens.weight"]
    assert [name for name, _ in loaded] == list(weights.shapes(model))[1:]


def test_an_untied_head_that_is_not_asked_for_is_left_where_it_is(folder):
    model = described(str(folder)).model_copy(update={"head": "none"})
    assert "lm_head.weight" not in dict(weights.load(model))


def test_the_summary_of_a_model_says_where_its_numbers_are_from(folder):
    model = described(str(folder))
    assert source.summary(model) == source.describe(str(folder), Path()).summary
    assert source.summary(model.model_copy(update={"source": None})) is None
    gone = model.model_copy(update={"source": "/nowhere/Some.gguf"})
    assert source.summary(gone) == "from Some.gguf, which is not on this machine"


# ── what is remembered ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hash_is_computed_once_while_a_file_does_not_change(tmp_path, cache):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first, stat = cached.sha256(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cached.sha256(file) == first  # same path, size and time: not read again
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cached.sha256(file) != first


def test_a_description_is_made_once_while_no_file_changes(folder, monkeypatch):
    first = source.describe(str(folder), Path())
    monkeypatch.setattr(source, "open_checkpoint", lambda path: pytest.fail("opened again"))
    assert source.describe(str(folder), Path()) == first


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_memory_that_is_damaged_is_made_again(folder, cache, content):
    first = source.describe(str(folder), Path())
    for file in (cache / "sources").iterdir():
        file.write_bytes(content)
    assert source.describe(str(folder), Path()) == first


def test_a_cache_that_cannot_be_written_costs_time_alone(folder, monkeypatch, gguf_of, llama_of):
    blocked = folder.parent / "a file"
    blocked.write_text("")
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(blocked))
    assert described(str(folder)).hidden_size == 32
    with zipfile.ZipFile(folder.parent / "a.zip", "w") as opened:
        opened.write(gguf_of(llama_of()), "tiny.gguf")
    with pytest.raises(WorkError, match=r"a file: cannot be written: .*; set LLAMA_BENCH_CACHE to another folder"):
        described(str(folder.parent / "a.zip"))
