"""What an autoscaler could bring: its node types, and asking for one node of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llama_bench.cluster.connect import BENCH_GPU, SHARE, Node
from llama_bench.errors import InputError
from llama_bench.sweep import Target

HEADS_COPY = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its file on the head, on which a submitted job runs; Ray itself tells nobody what is in it."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A type of node that can be brought: what one offers, and how many there may be."""

    name: str
    resources: Mapping[str, float]
    most: int
    labels: Mapping[str, str]

    def serves(self, target: Target) -> bool:
        return self.as_node().serves(target)

    @property
    def builds(self) -> bool:
        return self.as_node().builds

    def as_node(self) -> Node:
        """Return a node of this type as it would look."""
        return Node("", self.name, self.resources, self.labels)


def node_types(file: Path | None = None) -> list[NodeType]:
    """Return the types of worker nodes in `file` (of `ray up`'s form), or in the head's copy of it where there is one.

    Raises InputError when `file` is given and cannot be read as such.
    """
    path = (file or HEADS_COPY).expanduser()
    if file is None and not path.is_file():
        return []
    try:
        config = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        head, types = config.get("head_node_type"), config["available_node_types"]
        return [_node_type(name, said, config) for name, said in types.items() if name != head]
    except (OSError, YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = "it has no `available_node_types`"
        if isinstance(error, (OSError, YAMLError)):
            why = " ".join(str(error).split())
        raise InputError(f"{path}: not a file that `ray up` reads: {why}") from None


def _node_type(name: str, said: Mapping[str, Any], config: Mapping[str, Any]) -> NodeType:
    resources = {key: float(number) for key, number in (said.get("resources") or {}).items()}
    if BENCH_GPU in resources:
        resources.setdefault("GPU", 1.0)  # the cloud knows it from the type of machine, so that files leave it out
    most = int(said.get("max_workers", config.get("max_workers", 0)))
    return NodeType(name, resources, most, dict(said.get("labels") or {}))


Need = tuple[str, bool]
"""What is asked of a node: its tag, and whether it must have a GPU."""


def need(target: Target) -> Need:
    """Return what `target` asks of a node."""
    return target.tag, target.needs_gpu


class Asked:
    """Nodes that have been asked for and are not in use yet. An open request keeps its node from being given back."""

    def __init__(self, types: Iterable[NodeType]) -> None:
        self._types = list(types)
        self._open: dict[Need, list[PlacementGroup]] = {}

    def can_bring(self, target: Target) -> int:
        """Return how many nodes that serve `target` there may be."""
        return sum(one.most for one in self._types if one.serves(target))

    def ask(self, wanted: Mapping[Need, int]) -> None:
        """See to it that so many nodes of each need are asked for, no more and no less, and of others none."""
        for key in {*wanted, *self._open}:
            groups, count = self._open.setdefault(key, []), wanted.get(key, 0)
            while len(groups) > count:
                remove_placement_group(groups.pop())
            tag, gpu = key
            bundle = {"CPU": SHARE, tag: 1.0} | ({"GPU": 1.0} if gpu else {})
            groups += [placement_group([bundle]) for _ in range(count - len(groups))]

    def arrived(self, node: Node) -> None:
        """Give up the requests that `node` may have met, for what is to be timed there."""
        for (tag, gpu), groups in self._open.items():
            if node.resources.get(tag, 0) >= 1 and (not gpu or node.resources.get("GPU", 0) >= 1):
                met = [group for group in groups if group.wait(0)]
                for group in met:
                    groups.remove(group)
                    remove_placement_group(group)

    def close(self) -> None:
        """Ask for nothing any more."""
        self.ask({})
