"""Nodes for an autoscaler that are processes of this machine: Ray's own for tests, which knows no memory of a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """Starts each node with the memory that the machine has, whatever its type says."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: Mapping[str, float], labels: Any
    ) -> None:
        own = {name: number for name, number in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(node_config, tags, count, own, labels)
