"""What results, artifacts and sweeps can never do: run code, lead out of their folder, or carry away a secret.

The rest of these promises is held where it belongs: external data, names in manifests and addresses of stores in
test_store, tags in a sweep in test_sweep_file, shards of a checkpoint in model/test_huggingface, what people wrote on a
page in report/test_report, and credentials in a whole run in test_s3.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_bench.errors import InputError
from llama_bench.model import source

PACKAGE = Path(__file__).parent.parent / "llama_bench"

MODULES = {
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "multiprocessing"),
    *("builtins", "code", "codeop", "runpy", "yaml"),  # ruamel.yaml's safe loader is the one that is used
}
"""Modules that make objects or run code out of what they read."""

FUNCTIONS = {
    *("eval", "exec", "compile", "__import__", "importlib.import_module"),
    *("os.system", "os.popen", "torch.load", "torch.jit.load", "torch.hub.load"),
}

METHODS = {"read_pickle", "deserialize", "register_custom_ops_library"}
"""Forbidden whatever they are called on."""

ARGUMENTS = {"allow_pickle": False, "trust_remote_code": False, "shell": False}
"""Argument → the only value that it may have."""

ALLOWED = {
    # both ends of the connection are this program
    "cluster/processes.py": {"multiprocessing.connection"},
    # by names out of our own tables
    "engines/__init__.py": {"importlib.import_module"},
    "engines/executed.py": {"importlib.import_module"},
    "engines/openvino.py": {"importlib.import_module"},
}


def offences(text: str) -> Iterator[str]:
    """Yield what a module does that could let data run code."""
    tree = ast.parse(text)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name.asname: name.name for name in node.names if name.asname}
            yield from (name.name for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            yield from [node.module] if node.module.split(".")[0] in MODULES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _offences_of(node, names)


def _offences_of(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    function = _dotted(call.func, names)
    last = function.rpartition(".")[2]
    if function in FUNCTIONS or last in METHODS:
        yield function
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    for argument, only in ARGUMENTS.items():
        if argument in given and not _is(given[argument], only):
            yield f"{last}({argument}=…)"
    if last == "YAML" and not ("typ" in given and _is(given["typ"], "safe")):
        yield 'YAML without typ="safe"'


def _dotted(function: ast.expr, names: dict[str, str]) -> str:
    """Return a function's name in full, whatever it was imported as; of what is no name its last part."""
    if isinstance(function, ast.Name):
        return names.get(function.id, function.id)
    return f"{_dotted(function.value, names)}.{function.attr}" if isinstance(function, ast.Attribute) else ""


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def test_no_module_lets_data_run_code() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): {*offences(path.read_text(encoding="utf-8"))}
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: offended for name, offended in found.items() if offended} == ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml",
        "from multiprocessing.connection import Client",
        "eval(text)",
        "def f():\n    exec(text)",
        "compile(text, '', 'exec')",
        "import os\nos.system(text)",
        "from os import system as run\nrun(text)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=how)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "import pandas\npandas.read_pickle(path)",
        "import polars as pl\npl.LazyFrame.deserialize(path)",
        "options.register_custom_ops_library(path)",
        "from importlib import import_module\nimport_module(name)",
        "import importlib\nimportlib.import_module(name)",
        "from ruamel.yaml import YAML\nYAML().load(path)",
        "from ruamel.yaml import YAML\nYAML(typ='unsafe').load(path)",
        "from ruamel.yaml import YAML\nYAML(typ=kind).load(path)",
    ],
)
def test_what_would_run_code_is_seen_under_any_name(text: str) -> None:
    assert [*offences(text)]


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile(words)",
        "model.eval()",
        "import torch\ntorch.compile(model)",
        "import onnx\nonnx.load(path)",
        "import numpy as np\nnp.load(path)",
        "from ruamel.yaml import YAML\nYAML(typ='safe', pure=True).compose(text)",
        "import subprocess\nsubprocess.run([program, argument])",
    ],
)
def test_what_runs_no_code_is_let_alone(text: str) -> None:
    assert [*offences(text)] == []


def test_a_cluster_file_is_data_only(tmp_path: Path) -> None:
    from llama_bench.cluster.autoscaler import node_types

    file, made = tmp_path / "cluster.yaml", tmp_path / "made"
    for tag in (f"!!python/object/apply:pathlib.Path.touch [{made}]", f"!!python/object/apply:os.mkdir [{made}]"):
        file.write_text(f"head_node_type: head\navailable_node_types:\n  worker: {tag}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"cluster\.yaml"):
            node_types(file)
        assert not made.exists()


def test_an_archive_is_taken_out_into_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "deep" / "er" / "cache"
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(cache))
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../../../escaped.gguf", b"GGUF")
    _, taken_out, _ = source.locate(str(archive), tmp_path)
    assert taken_out.is_relative_to(cache) and ".." not in taken_out.parts
    assert [path for path in tmp_path.rglob("*.gguf")] == [taken_out]
    assert not (tmp_path.parent / "escaped.gguf").exists()
