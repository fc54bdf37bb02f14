"""`targets`: the nodes that Ray has, their tags, and what they serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import AsJson, print_json, print_table, read_sweep, size, warn

if TYPE_CHECKING:
    from llama_bench.cluster.connect import Node
    from llama_bench.sweep import Target

EXAMPLES = """
What this machine would serve:
  python -m llama_bench targets
Which nodes of a cluster serve the targets of a sweep:
  RAY_ADDRESS=head:6379 python -m llama_bench targets sweeps/report.yaml
"""


def command(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="Say which targets of this sweep each node serves.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join this Ray cluster (the same as RAY_ADDRESS).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the nodes, their tags and what they serve. Connects to Ray, or starts it here for a moment."""
    wanted = dict(read_sweep(sweep).targets) if sweep else {}

    from llama_bench.cluster import connect

    connect.connect(address)
    nodes = connect.nodes()
    listed = [_row(node, wanted) for node in nodes]
    if as_json:
        print_json(listed)
    else:
        columns = ("node", "address", "CPUs", "GPUs", "memory", "tags", "serves")
        print_table(columns, [_cells(row) for row in listed], right="CPUs, GPUs, memory")
    for name, reason in connect.unserved(wanted, nodes).items():
        warn(f"target {name}: {reason}")


def _row(node: Node, wanted: Mapping[str, Target]) -> dict[str, Any]:
    return {
        "node": node.id,
        "address": node.address,
        "cpus": node.resources.get("CPU", 0),
        "gpus": node.resources.get("GPU", 0),
        "memory_bytes": int(node.resources.get("memory", 0)),
        "tags": {tag: node.resources[tag] for tag in node.tags},
        "builds": node.builds,
        "serves": [name for name, target in wanted.items() if node.serves(target)],
    }


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a node's row; without a sweep, what a target must say to be served by it."""
    served = list(row["serves"]) or [f"tag: {tag}" for tag in row["tags"] if tag.startswith("bench")]
    return (
        row["node"][:12],
        row["address"],
        f"{row['cpus']:g}",
        f"{row['gpus']:g}",
        size(row["memory_bytes"]),
        ", ".join(f"{tag} {number:g}" for tag, number in row["tags"].items()),
        ", ".join([*served, *["builds"] * row["builds"]]),
    )
