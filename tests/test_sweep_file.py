from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from llama_bench.cli.common import catalogue as real_catalogue
from llama_bench.errors import InputError
from llama_bench.sweep import Model, Pass, Recipe, Sweep, Target
from llama_bench.sweep_file import Catalogue, json_schema, load, select
from llama_bench.sweep_tree import Described

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
STUDY = ["eliminate_identity", "fuse_transpose_into_gemm", "fuse_matmul_add_bias_into_gemm"]
USABLE = [*STUDY, "eliminate_deadend", "default"]
PASSES: dict[str, dict[str, str | None]] = {
    "onnxoptimizer": {**dict.fromkeys(USABLE), "split_init": "it cuts the model in two"}
}


def misfit(steps: Sequence[Pass], model: Model) -> tuple[int, str] | None:
    """Stands for the table of passes: it knows names, and that one of them is not for a width of 32."""
    for i, step in enumerate(steps):
        known = PASSES.get(step.family)
        if known is None:
            return i, f"unknown pass family {step.family!r}"
        if step.name not in known:
            return i, f"unknown pass {step.name!r}"
        if known[step.name]:
            return i, f"{step.label} cannot be used: {known[step.name]}"
        if step.name == "eliminate_deadend" and model.hidden_size == 32:
            return i, f"{step.label} does not fit model {model.label}"
    return None


CATALOGUE = Catalogue(
    passes=PASSES,
    providers=("CPUExecutionProvider", "CUDAExecutionProvider"),
    engines=("onnxruntime",),
    options={"onnxoptimizer": {}},
    misfit=misfit,
)

BASE = """\
name: tiny
models:
  defaults: {num_attention_heads: 2, vocab_size: 64}
  sizes:
    - {hidden_size: 16}
    - {hidden_size: 32, vocab_size: 128}
recipes:
  original: {}
  identity:
    passes:
      - onnxoptimizer: eliminate_identity
      - onnxoptimizer: default
    session: {optimization_level: disable}
workloads:
  prefill: {batch: 1, sequence: 8}
targets:
  cpu: {tag: bench_cpu, provider: CPUExecutionProvider}
measure: {restarts: 2}
"""

# ten times ten times … eight times over: few bytes, more values than memory holds
LAUGHS = "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(8))
LAUGHS = f"a0: &a0 [{','.join('1' * 10)}]\n{LAUGHS}"


def write(folder: Path, text: str | bytes, name: str = "x.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path, catalogue: Catalogue = CATALOGUE) -> str:
    """Return the message with which `path` is refused, without the folder it lies in."""
    with pytest.raises(InputError) as caught:
        load(path, catalogue)
    message = str(caught.value).replace(f"{path.parent}/", "")
    assert len(message.splitlines()) <= 2
    return message


def plain(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults_are_given_once_and_a_size_may_say_otherwise(tmp_path: Path) -> None:
    sweep = load(write(tmp_path, BASE), CATALOGUE)
    assert [(m.label, m.vocab_size) for m in sweep.models] == [("h16-a2-l2", 64), ("h32-a2-l2", 128)]
    names = ("eliminate_identity", "default")
    assert sweep.recipes["identity"].passes == tuple(Pass(family="onnxoptimizer", name=name) for name in names)
    assert sweep.measure.restarts == 2


def test_anchors_and_merge_keys_are_plain_yaml(tmp_path: Path) -> None:
    text = BASE.replace("{hidden_size: 16}", "&small {hidden_size: 16, vocab_size: 8}")
    text = text.replace("{hidden_size: 32, vocab_size: 128}", "{<<: [*small, {vocab_size: 9}], hidden_size: 32}")
    assert [(m.hidden_size, m.vocab_size) for m in load(write(tmp_path, text), CATALOGUE).models] == [(16, 8), (32, 8)]


def test_a_name_may_look_like_a_number_or_a_date(tmp_path: Path) -> None:
    text = BASE.replace("  identity:", "  2026-11-23: {}\n  1e3: {}\n  identity:")
    assert {"2026-11-23", "1e3"} <= set(load(write(tmp_path, text), CATALOGUE).recipes)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert load(write(tmp_path, b"\xef\xbb\xbf" + BASE.encode()), CATALOGUE).name == "tiny"


def test_reading_a_sweep_loads_no_heavy_library() -> None:
    program = (
        "import sys; from pathlib import Path; from llama_bench.sweep_file import Catalogue, load;"
        f"load(Path('sweeps/report.yaml'), Catalogue({CATALOGUE.passes}, {CATALOGUE.providers}, {CATALOGUE.engines}));"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'ray', 'numpy', 'polars') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sizes:", "size:", "x.yaml:4: models: unknown key 'size'; did you mean 'sizes'?"),
        (
            "{hidden_size: 16}",
            "{hiden_size: 16}",
            "5: models.sizes[0]: unknown key 'hiden_size'; did you mean 'hidden_size'?",
        ),
        ("vocab_size: 64", "vocabsize: 64", "3: models.defaults: unknown key 'vocabsize'; did you mean 'vocab_size'?"),
        ("{hidden_size: 16}", "{}", "5: models.sizes[0]: missing key 'hidden_size'"),
        (
            "{hidden_size: 16}",
            "{hidden_size: big}",
            "5: models.sizes[0].hidden_size: must be a whole number, not 'big'",
        ),
        (
            "{hidden_size: 16}",
            "{hidden_size: 17}",
            "3: models.defaults.num_attention_heads: num_attention_heads 2 does not divide hidden_size 17",
        ),
        ("{hidden_size: 16}", "{hidden_size: -2}", "5: models.sizes[0].hidden_size: must be greater than 0, not -2"),
        (
            "{hidden_size: 16}",
            "{hidden_size: 32}",
            "6: models.sizes[1]: the models 0 and 1 (counted from 0) are both called 'h32-a2-l2'; give one a name",
        ),
        ("models:\n", "models: 5\nmodell:\n", "2: models: must be a mapping with defaults and sizes, not a number"),
        ("recipes:", "recipe:", "7: unknown key 'recipe'; did you mean 'recipes'?"),
        ("  identity:", "  original:", "9: recipes: 'original' is here twice; first on line 8"),
        (
            "  identity:",
            "  control:",
            "9: recipes.control: 'control' names the baseline's second arm; give the recipe another name",
        ),
        ("  identity:", "  'a b':", "9: recipes.a b: the name 'a b' must begin with a letter or digit"),
        ("original: {}", "original:", "8: recipes.original: must be a mapping, not nothing; {} is the empty one"),
        ("original: {}", "baseline: {}", "18: measure.baseline: the baseline 'original' is not a recipe of this sweep"),
        (
            "eliminate_identity",
            "eliminate_identiy",
            "11: recipes.identity.passes[0]: unknown pass 'eliminate_identiy'",
        ),
        (
            "onnxoptimizer: default",
            "onnxoptimiser: default",
            "12: recipes.identity.passes[1]: unknown pass family 'onnxoptimiser'",
        ),
        (
            "onnxoptimizer: default",
            "onnxoptimizer: split_init",
            "12: recipes.identity.passes[1]: onnxoptimizer: split_init cannot be used: it cuts the model in two",
        ),
        (
            "onnxoptimizer: default",
            "onnxoptimizer: eliminate_deadend",
            "12: recipes.identity.passes[1]: onnxoptimizer: eliminate_deadend does not fit model h32-a2-l2",
        ),
        (
            "onnxoptimizer: default",
            "default",
            "12: recipes.identity.passes[1]: a pass is one key and its value",
        ),
        ("{optimization_level: disable}", "{level: 0}", "13: recipes.identity.session: unknown key 'level'"),
        (
            "level: disable",
            "level: disabled",
            "13: recipes.identity.session.optimization_level: unknown value 'disabled'; did you mean 'disable'?",
        ),
        (
            "{optimization_level: disable}",
            "{provider_options: {a: []}}",
            "13: recipes.identity.session.provider_options.a: must be a text, a number, true or false, not a list",
        ),
        (
            "    session:",
            "    engine: torch\n    session:",
            "13: recipes.identity.engine: unknown engine 'torch'; valid: onnxruntime",
        ),
        (
            "sequence: 8",
            "sequence: 4096",
            "workloads.prefill.sequence: sequence 4096 is longer than max_position_embeddings 2048 of model h16-a2-l2",
        ),
        (
            "sequence: 8",
            "sequence: 8, outputs: hidden",
            "prefill.outputs: outputs 'hidden' needs models with head: none, and model h16-a2-l2 has head: lm",
        ),
        (
            "CPUExecutionProvider",
            "CUDAExecutionProvder",
            "17: targets.cpu.provider: unknown provider 'CUDAExecutionProvder'; did you mean 'CUDAExecutionProvider'?",
        ),
        ("{restarts: 2}", "{restarts: 1}", "18: measure.restarts: must be at least 2, not 1"),
        ("{restarts: 2}", "{text: {fle: x}}", "18: measure.text: unknown key 'fle'; did you mean 'file'?"),
        ("{restarts: 2}", "{accuracy: {top1: 1}}", "measure.accuracy: unknown key 'top1'; did you mean 'min_top1'?"),
        (
            "{hidden_size: 16}",
            "{hidden_size: 16, rope_scaling: {rope_type: linear, facter: 2}}",
            "5: models.sizes[0].rope_scaling: unknown key 'facter'; did you mean 'factor'?",
        ),
        ("{restarts: 2}", "{half_width: .nan}", "18: measure.half_width: must be a finite number, not nan"),
        ("name: tiny", "name: artifacts", "1: name: 'artifacts' is a folder of the store; give the sweep another name"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line_and_the_nearest_word(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in BASE
    assert message in refusal(write(tmp_path, BASE.replace(old, new, 1)))


@pytest.mark.parametrize("part", ["models", "recipes", "workloads", "targets"])
def test_an_empty_sweep_is_refused(tmp_path: Path, part: str) -> None:
    whole = YAML(typ="safe", pure=True).load(BASE)
    empty: dict[str, Any] = {"sizes": []} if part == "models" else {}
    message = refusal(write(tmp_path, json.dumps({**whole, part: empty})))  # JSON is YAML
    assert f"x.yaml:1: {part}" in message
    assert "empty; a sweep needs at least one" in message
    del whole[part]
    assert refusal(write(tmp_path, json.dumps(whole))) == f"x.yaml:1: missing key {part!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "x.yaml:1: the file is empty"),
        (b"# nothing\n", "x.yaml:1: the file is empty"),
        (b"- a\n- b\n", "x.yaml:1: a sweep is a mapping of keys to values, and this file holds a list"),
        (b"hello\n", "x.yaml:1: a sweep is a mapping of keys to values, and this file holds a text"),
        (b"name: x\nrecipes: {\n", "x.yaml:3: not YAML: while parsing a flow node, expected the node content"),
        (b"name: x\n\tmodels: 1\n", "x.yaml:2: not YAML: "),
        (b"name: x\nmodels: \xff\n", "x.yaml:2: not UTF-8 text (byte 0xff)"),
        (b"name: x\nmodels: \x00\n", "x.yaml:2: not YAML: special characters are not allowed"),
        (b"name: x\n---\nname: y\n", "x.yaml:2: not YAML: expected a single document"),
        (b"name: x\nmodels: *nowhere\n", "x.yaml:2: not YAML: found undefined alias 'nowhere'"),
        (b"name: &a [*a]\n", "x.yaml:1: name[0]: an alias that holds itself"),
        (b"name: x\n? [a]\n: 1\n", "x.yaml:2: the file: a key must be a word"),
        (b"[" * 5000, "x.yaml:1: not a sweep: values are nested too deeply"),
        (b"name: x\nseed: 1" + b"0" * 5000, "x.yaml:2: '10000000000000000000'… is not a usable number"),
        (LAUGHS, "more than 200000 values"),
        (
            b"name: !!python/object/apply:os.system [exit]\n",
            "x.yaml:1: the tag !!python/object/apply:os.system is not allowed",
        ),
        (b"name: x\n!!python/name:os.system y: 1\n", "x.yaml:2: the tag !!python/name:os.system is not allowed"),
        (b"name: !secret x\n", "x.yaml:1: the tag !secret is not allowed"),
        (b"#" * (9 * 2**20), "x.yaml: larger than 8 MiB, so not a sweep"),
    ],
)
def test_what_is_no_plain_yaml_mapping_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    write(tmp_path, BASE, "quick.yaml")
    assert refusal(tmp_path / "quik.yaml") == "quik.yaml: no such file; did you mean 'quick.yaml'?"
    assert "cannot be read: Is a directory" in refusal(tmp_path)


# ── includes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_including_file_wins_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, BASE, "parts/base.yaml")
    own = """\
include: parts/base.yaml
name: mine
models: {defaults: {vocab_size: 32}, sizes: [{hidden_size: 64}]}
recipes: {identity: {passes: [{onnxoptimizer: default}]}, more: {}}
"""
    sweep = load(write(tmp_path, own), CATALOGUE)
    assert sweep.name == "mine"
    assert [(m.label, m.vocab_size) for m in sweep.models] == [("h64-a2-l2", 32)]
    assert list(sweep.recipes) == ["original", "identity", "more"]
    assert [step.name for step in sweep.recipes["identity"].passes] == ["default"]
    assert sweep.recipes["identity"].session.optimization_level == "disable"
    assert sweep.measure.restarts == 2


def test_of_several_includes_the_later_wins_and_parts_choose_what_comes(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.yaml")
    write(tmp_path, "measure: {restarts: 9}\nworkloads: {other: {sequence: 4}}\n", "more.yaml")
    text = "name: mine\ninclude: [base.yaml, {file: more.yaml, parts: [measure]}]\n"
    sweep = load(write(tmp_path, text), CATALOGUE)
    assert sweep.measure.restarts == 9
    assert list(sweep.workloads) == ["prefill"]


def test_includes_are_relative_to_the_file_that_includes(tmp_path: Path) -> None:
    write(tmp_path, BASE, "parts/base.yaml")
    write(tmp_path, "include: base.yaml\n", "parts/middle.yaml")
    assert load(write(tmp_path, "name: top\ninclude: parts/middle.yaml\n"), CATALOGUE).name == "top"


def test_the_name_of_an_included_file_is_not_taken_over(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.yaml")
    assert "x.yaml:1: missing key 'name'" in refusal(write(tmp_path, "include: base.yaml\n"))


def test_an_error_in_an_included_file_names_that_file_and_line(tmp_path: Path) -> None:
    text = "name: mine\ninclude: [base.yaml]\n"
    write(tmp_path, BASE.replace("sequence: 8", "seqence: 8"), "base.yaml")
    message = refusal(write(tmp_path, text))
    assert message == "base.yaml:15: workloads.prefill: unknown key 'seqence'; did you mean 'sequence'?"
    write(tmp_path, BASE.replace("eliminate_identity", "nothing_like_it"), "base.yaml")
    assert refusal(tmp_path / "x.yaml").startswith("base.yaml:11: recipes.identity.passes[0]: unknown pass")
    write(tmp_path, BASE.replace("vocab_size: 64", "vocab_size: 0"), "base.yaml")
    assert refusal(tmp_path / "x.yaml").startswith("base.yaml:3: models.defaults.vocab_size: must be greater than 0")
    write(tmp_path, "recipes: {", "base.yaml")
    assert refusal(tmp_path / "x.yaml").startswith("base.yaml:1: not YAML: ")


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ("[bas.yaml]", "x.yaml:2: include[0]: cannot include bas.yaml: no such file; did you mean 'base.yaml'?"),
        ("[{file: base.yaml, part: [recipes]}]", "x.yaml:2: include[0]: unknown key 'part'; did you mean 'parts'?"),
        (
            "{file: base.yaml, parts: [recipe]}",
            "x.yaml:2: include.parts[0]: unknown part 'recipe'; did you mean 'recipes'?",
        ),
        ("{file: base.yaml, parts: [name]}", "x.yaml:2: include.parts[0]: unknown part 'name'"),
        ("{file: part.yaml, parts: [models]}", "x.yaml:2: include.parts[0]: part.yaml has no models; valid: recipes"),
        ("{parts: [recipes]}", "x.yaml:2: include: an include is a file name, or {file: …, parts: […]}"),
        ("[5]", "x.yaml:2: include[0]: an include is a file name"),
        ('["a\\0b"]', "x.yaml:2: include[0]: an include is a file name"),
        ("", "x.yaml:2: include: an include is a file name"),
        ("x.yaml", "x.yaml:2: include: the include goes round in a circle: x.yaml → x.yaml"),
        ("loop.yaml", "loop.yaml:1: include[0]: the include goes round in a circle: x.yaml → loop.yaml → x.yaml"),
    ],
)
def test_a_wrong_include_is_named_where_it_stands(tmp_path: Path, include: str, message: str) -> None:
    write(tmp_path, BASE, "base.yaml")
    write(tmp_path, "recipes: {original: {}}\n", "part.yaml")
    write(tmp_path, "include: [x.yaml]\n", "loop.yaml")
    assert message in refusal(write(tmp_path, f"name: mine\ninclude: {include}\n"))


# ── session options ──────────────────────────────────────────────────────────────────────────────────────────────────


CELLS = """\
cells:
  - {model: h16*, recipes: [ident*]}
  - {workload: prefill, target: cpu, baseline: identity}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("h16*", "h17*", "20: cells[0].model: no model matches 'h17*'; valid: h16-a2-l2, h32-a2-l2"),
        ("ident*", "identty", "20: cells[0].recipes[0]: no recipe matches 'identty'; did you mean 'identity'?"),
        ("workload: prefill", "workload: prefil", "21: cells[1].workload: no workload matches 'prefil'; did you mean"),
        ("target: cpu", "target: gpu", "21: cells[1].target: no target matches 'gpu'; did you mean 'cpu'?"),
        ("baseline: identity", "baseline: ident", "21: cells[1].baseline: the baseline 'ident' is not a recipe of"),
        ("target: cpu", "targets: cpu", "21: cells[1]: unknown key 'targets'; did you mean 'target'?"),
        ("recipes: [ident*]", "recipes: []", "20: cells[0].recipes: empty"),
    ],
)
def test_a_wrong_entry_of_cells_is_named_where_it_stands(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in refusal(write(tmp_path, BASE + CELLS.replace(old, new)))


def test_what_no_cell_puts_together_need_not_fit(tmp_path: Path) -> None:
    text = BASE.replace("hidden_size: 32", "hidden_size: 32, cache: true").replace(
        "sequence: 8}", "sequence: 8}\n  decode: {kind: decode, context: 8}"
    )
    assert "decode needs models with cache: true, and model h16-a2-l2 has none" in refusal(write(tmp_path, text))
    chosen = "cells: [{model: h16*, workload: prefill}, {model: h32*, recipes: [original]}]\n"
    sweep = load(write(tmp_path, text + chosen), CATALOGUE)
    cells = [(cell.model.label, cell.workload, cell.recipes) for cell in sweep.chosen()]
    assert cells == [
        ("h16-a2-l2", "prefill", ("original", "identity")),
        *[("h32-a2-l2", workload, ("original",)) for workload in ("prefill", "decode")],
    ]
    wrong = replace(
        CATALOGUE, misfit=lambda steps, model: (0, "not for h32") if steps and model.hidden_size == 32 else None
    )
    assert load(tmp_path / "x.yaml", wrong) == sweep  # the recipe with passes is no arm of that model
    assert "not for h32" in refusal(write(tmp_path, text.replace("  decode: {kind: decode, context: 8}\n", "")), wrong)
    part = select(sweep, "model=h32*,recipe=original,workload=decode")
    assert [cell.workload for cell in part.chosen()] == ["decode"]


def test_a_variable_that_is_none_of_the_engines_is_refused(tmp_path: Path) -> None:
    text = BASE.replace("optimization_level: disable", 'environment: {ORT_ENABLE_XQA: "0"}')
    sweep = load(write(tmp_path, text), CATALOGUE)
    assert sweep.recipes["identity"].session.environment == {"ORT_ENABLE_XQA": "0"}
    message = refusal(write(tmp_path, text.replace("ORT_ENABLE_XQA", "LD_PRELOAD")))
    assert "'LD_PRELOAD' is no variable of ONNX Runtime, cuBLAS or cuDNN: ORT_…, CUBLAS_…, CUDNN_…, NVIDIA_…" in message


def test_options_that_an_engine_does_not_take_on_a_target_are_refused_at_the_recipes_session(tmp_path: Path) -> None:
    def unfit(recipe: Recipe, target: Target) -> str | None:
        bad = recipe.session.optimization_level == "disable" and target.tag == "bench_cpu"
        return "optimization_level is not for bench_cpu" if bad else None

    message = refusal(write(tmp_path, BASE), replace(CATALOGUE, unfit=unfit))
    assert message == "x.yaml:13: recipes.identity.session: optimization_level is not for bench_cpu"


# ── a part of a sweep ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def study() -> Sweep:
    return load(ROOT / "sweeps/report.yaml", CATALOGUE)


def test_only_keeps_what_matches_and_always_the_baseline(study: Sweep) -> None:
    part = select(study, "model=h512*|h1024*, recipe=fuse_*|all_three, target=B")
    assert [m.label for m in part.models] == ["h512-a4-l2", "h1024-a8-l2"]
    assert list(part.recipes) == ["original", *STUDY[1:], "all_three"]
    assert list(part.targets) == ["B"]
    assert part.workloads == study.workloads
    assert select(study, "workload=*") == study


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("", "'' is not of the form key=name"),
        ("h512", "'h512' is not of the form key=name, such as model=h512-a4-l2"),
        ("modle=h512*", "unknown key 'modle'; did you mean 'model'?"),
        ("recipe=all_thre", "no recipe matches 'all_thre'; did you mean 'all_three'?"),
        ("recipe=original|x", "no recipe matches 'x'; valid: all_three, default_level0, "),
        ("target=C", "no target matches 'C'; valid: A, B"),
        ("target=A,target=B", "target is here twice; several names go as target=a|b"),
    ],
)
def test_only_refuses_what_it_does_not_know(study: Sweep, only: str, message: str) -> None:
    with pytest.raises(InputError, match="--only") as caught:
        select(study, only)
    assert message in str(caught.value)


# ── the shipped sweeps and their schema ──────────────────────────────────────────────────────────────────────────────


def test_report_yaml_is_the_study(study: Sweep) -> None:
    assert [(m.hidden_size, m.num_attention_heads) for m in study.models] == [(512, 4), (1024, 8), (2048, 16)]
    common = {"num_hidden_layers": 2, "intermediate_size": 11008, "vocab_size": 32000, "head": "none", "opset": 17}
    for model in study.models:
        assert common.items() <= model.model_dump().items()
        assert model.exporter == "torchscript" and model.attention_mask
    [workload] = study.workloads.values()
    assert (workload.batch, workload.sequence, workload.outputs, workload.kv_out) == (2, 1024, "hidden", True)
    singles = {name: [name] for name in STUDY}
    levels = {"original_level0": [], "default_level0": ["default"]}
    on_gpu: dict[str, list[str]] = {"original_host": [], "original_fp32": []}
    wanted = {"original": [], **singles, "all_three": STUDY, "onnxoptimizer_default": ["default"], **levels, **on_gpu}
    assert {name: [step.name for step in recipe.passes] for name, recipe in study.recipes.items()} == wanted
    for name, recipe in study.recipes.items():
        assert recipe.session.optimization_level == ("disable" if name in levels else "all")
    targets = {name: (target.tag, target.provider) for name, target in study.targets.items()}
    assert targets == {"A": ("bench_gpu", "CUDAExecutionProvider"), "B": ("bench_cpu", "CPUExecutionProvider")}
    arms = {cell.target: cell.recipes for cell in study.chosen()}
    assert set(arms["A"]) == set(wanted) and set(arms["B"]) == set(wanted) - set(on_gpu)
    assert study.measure.restarts >= 6
    assert study.measure.restarts * study.measure.blocks * study.measure.runs >= 100


def test_quick_yaml_is_the_studys_passes_on_three_small_sizes() -> None:
    quick = load(ROOT / "sweeps/quick.yaml", CATALOGUE)
    assert list(quick.recipes) == ["original", *STUDY]
    assert len(quick.models) == 3 and max(m.hidden_size for m in quick.models) <= 256
    assert list(quick.targets) == ["cpu"]
    assert quick.measure.restarts >= 4 and quick.measure.half_width is None


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
@pytest.mark.parametrize("words", [True, False], ids=["words", "no words"])
def test_shipped_sweeps_load_and_fit_the_schema(path: Path, words: bool) -> None:
    def smollm2(source: str, base: Path) -> Described:
        sizes = {
            "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30,
            "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }  # fmt: skip
        path = base / source
        return Described(str(path), path, "SmolLM2", sizes, "5" * 64, "dequantised from Q4_1 (GGUF, 98 MB)")

    known = replace(real_catalogue(), describe=smollm2)
    load(path, known)
    schema = json_schema(known if words else None)
    Draft202012Validator.check_schema(schema)
    json.dumps(schema)
    assert not list(Draft202012Validator(schema).iter_errors(plain(path)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: tiny", ""),
        ("sizes:", "size:"),
        ("{hidden_size: 16}", "{hiden_size: 16}"),
        ("vocab_size: 64", "vocab_size: big"),
        ("eliminate_identity", "eliminate_identiy"),
        ("onnxoptimizer: default", "onnxoptimizer: split_init"),
        ("onnxoptimizer: default", "default"),
        ("level: disable", "level: disabled"),
        ("CPUExecutionProvider", "CPU"),
        ("sequence: 8", "sequence: big"),
        ("sequence: 8", "sequence: []"),
        ("sequence: 8", "sequence: [8, big]"),
        ("  identity:", "  'a b':"),
        ("{restarts: 2}", "{restarts: 1}"),
        ("name: tiny", "name: tiny\ninclude: [{part: x}]"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(tmp_path: Path, old: str, new: str) -> None:
    validator = Draft202012Validator(json_schema(CATALOGUE))
    assert validator.is_valid(plain(write(tmp_path, BASE)))
    path = write(tmp_path, BASE.replace(old, new, 1))
    refusal(path)
    assert not validator.is_valid(plain(path))


def test_the_schema_asks_for_less_where_an_include_may_bring_it() -> None:
    validator = Draft202012Validator(json_schema(CATALOGUE))
    part = {"name": "x", "workloads": {"prefill": {"batch": 4}}}
    assert not validator.is_valid(part)
    assert validator.is_valid({**part, "include": ["base.yaml", {"file": "more.yaml", "parts": ["measure"]}]})


def test_every_key_in_the_schema_is_described() -> None:
    schema = json_schema(CATALOGUE)
    parts = {"sweep": schema, **schema["$defs"]}
    keys = {f"{part}.{key}": text for part, body in parts.items() for key, text in body["properties"].items()}
    del keys["Pass.onnxoptimizer"]
    described = {key for key, text in keys.items() if "description" in text or "$ref" in text}
    assert len(keys) > 40
    assert described == set(keys)


def test_the_text_of_a_pass_is_found_beside_the_sweep_and_its_hash_is_kept(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("some words")
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "name: tiny\n"
        "models: {sizes: [{hidden_size: 16, num_attention_heads: 2, intermediate_size: 64}]}\n"
        "recipes:\n"
        "  original: {}\n"
        "  pruned: {passes: [{prune: {name: channels, keep: 0.5, file: words.txt}}]}\n"
        "workloads: {prefill: {sequence: 8}}\n"
        "targets: {cpu: {tag: bench_cpu}}\n"
    )
    step = load(file, real_catalogue()).recipes["pruned"].passes[0]
    assert step.options["file"] == str(tmp_path / "words.txt")
    assert step.options["file_sha256"] == hashlib.sha256(b"some words").hexdigest()
    file.write_text(file.read_text().replace("words.txt", "word.txt"))
    with pytest.raises(InputError, match=r"sweep\.yaml:5: recipes\.pruned\.passes.*word\.txt: no such file"):
        load(file, real_catalogue())
