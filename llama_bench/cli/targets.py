"""`targets`: the nodes that Ray has, their tags, and what they serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import AsJson, Autoscaler, print_json, print_table, read_sweep, size, warn

if TYPE_CHECKING:
    from llama_bench.cluster.connect import Node
    from llama_bench.sweep import Target

EXAMPLES = """
What this machine would serve:
  python -m llama_bench targets
Which nodes of a cluster serve the targets of a sweep:
  RAY_ADDRESS=head:6379 python -m llama_bench targets sweeps/report.yaml
And which ones `ray up cluster.yaml` could bring:
  RAY_ADDRESS=head:6379 python -m llama_bench targets sweeps/report.yaml --autoscaler cluster.yaml
"""


def command(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="Say which targets of this sweep each node serves.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join this Ray cluster (the same as RAY_ADDRESS).")
    ] = None,
    autoscaler: Autoscaler = None,
    as_json: AsJson = False,
) -> None:
    """List the nodes, their tags and labels, what they serve and what they lack; then what an autoscaler could bring.

    Connects to Ray, or starts it here for a moment.
    """
    wanted = dict(read_sweep(sweep).targets) if sweep else {}

    from llama_bench.cluster import connect
    from llama_bench.cluster.autoscaler import node_types

    types = node_types(autoscaler)
    connect.connect(address)
    nodes = connect.nodes()
    listed = [_row(node, wanted) for node in nodes]
    listed += [{**_row(one.as_node(), wanted), "node": None, "could_be_brought": one.most} for one in types]
    if as_json:
        print_json(listed)
    else:
        columns = ("node", "address", "CPUs", "GPUs", "memory", "tags", "labels", "serves", "lacks")
        print_table(columns, [_cells(row) for row in listed], right="CPUs, GPUs, memory")
    for name, reason in connect.unserved(wanted, [*nodes, *(one.as_node() for one in types if one.most > 0)]).items():
        warn(f"target {name}: {reason}")


def _row(node: Node, wanted: Mapping[str, Target]) -> dict[str, Any]:
    return {
        "node": node.id,
        "address": node.address,
        "cpus": node.resources.get("CPU", 0),
        "gpus": node.resources.get("GPU", 0),
        "memory_bytes": int(node.resources.get("memory", 0)),
        "tags": {tag: node.resources[tag] for tag in node.tags},
        "labels": {key: value for key, value in node.labels.items() if not key.startswith("ray.io/")},
        "builds": node.builds,
        "serves": [name for name, target in wanted.items() if node.serves(target)],
        "lacks": {name: lack for name, target in wanted.items() if (lack := node.lacks(target))},
        "could_be_brought": 0,
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a node's row; without a sweep, what a target must say to be served by it."""
    served = list(row["serves"]) or [f"tag: {tag}" for tag in row["tags"] if tag.startswith("bench")]
    return (
        row["node"][:12] if row["node"] else f"up to {row['could_be_brought']} more",
        row["address"],
        f"{row['cpus']:g}" if row["cpus"] else "",
        f"{row['gpus']:g}",
        size(row["memory_bytes"]) if row["memory_bytes"] else "",
        ", ".join(f"{tag} {number:g}" for tag, number in row["tags"].items()),
        ", ".join(f"{key}={value}" for key, value in row["labels"].items()),
        ", ".join([*served, *["builds"] * row["builds"]]),
        ", ".join(f"{name}: {lack}" for name, lack in row["lacks"].items()),
    )
