"""The pictures that belong together: those of a run's page, and those of one variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, nearest
from llama_bench.report.drawing import file_name
from llama_bench.report.graphs import variants as found_variants
from llama_bench.report.graphs.difference import Difference, compare
from llama_bench.report.graphs.pictures import (
    HOPS,
    MOST_REWRITES,
    Picture,
    before_and_after,
    layer,
    operators,
    rewrites,
    summary,
)
from llama_bench.report.graphs.read import read
from llama_bench.report.graphs.variants import Step

if TYPE_CHECKING:
    from llama_bench.report.graphs.variants import Variant

MOST_STEPS = 8
"""Passes that get their pictures on a page, so that it opens at once; the rest is named."""

PAGE_REWRITES = 2  # kinds of rewrites of one pass on a page


@dataclass(frozen=True, slots=True)
class Section:
    """Pictures in order, and sentences on what has none."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]


def of_run(path: str) -> Section:
    """Return the section for the run at `path`, of its first model and workload; without graphs a note says why.

    A store keeps graphs beside its runs until it is cleaned; a run that was copied alone has none. Raises InputError
    for what is no run.
    """
    with found_variants.of_run(path) as found:
        if not found.variants:
            return Section((), (f"No pictures of graphs: {found.reason}.",))
        return of_variants(found.variants, found.baseline, found.title)


def of_variants(variants: Sequence[Variant], baseline: str, title: str = "") -> Section:
    """Return the baseline's layer, and each pass that changed something before and after.

    `title` is what the variants are of, such as the model. Recipes share passes; each is drawn once. Raises
    InputError when `baseline` is no variant, WorkError when a graph cannot be read.
    """
    base = next((variant for variant in variants if variant.name == baseline), None)
    if base is None:
        raise InputError(f"{baseline}: no such variant{nearest(baseline, [variant.name for variant in variants])}")
    heading = f"{base.name}, {title}" if title else base.name
    found, notes, names = [layer(read(base.path), f"One layer of {heading}")], [], {"layer"}
    # recipes that share a pass share its graphs: each pair once, under the first recipe's name
    steps = {(step.before, step.after): (variant, step) for variant in reversed(variants) for step in variant.steps}
    ordered = [(variant, step) for variant in variants for step in variant.steps]
    idle, more, drawn = [], [], 0
    for variant, step in ordered:
        if steps[step.before, step.after] != (variant, step):
            continue
        difference = _difference(step)
        if not difference.changed:
            idle.append(step.label)
        elif drawn == MOST_STEPS:
            more.append(step.label)
        else:
            drawn += 1
            about = step.label if len(variant.steps) == 1 else f"{step.label} in {variant.name}"
            shown = _pictures(difference, about, file_name(step.label, names), HOPS, PAGE_REWRITES)
            counted = operators(difference, about, f"{shown[0].name}-operators") if shown else None
            found += [*shown, *([counted] if counted else [])]
            notes += [] if shown else [f"{about}: {summary(difference)}"]
    if idle:
        notes.append(f"Changed no node: {', '.join(dict.fromkeys(idle))}.")
    if more:
        notes.append(f"Not drawn here, `python -m llama_bench graph` does: {', '.join(dict.fromkeys(more))}.")
    return Section(tuple(found), tuple(notes))


def of_variant(variant: Variant, base: Variant | None, hops: int = HOPS) -> tuple[Section, dict[str, Any]]:
    """Return one variant's pictures and what they show as data.

    Its layer and, against `base`, each of the passes between the two before and after, and the operators of both.
    Where `base` does not lie on the way to the variant they are compared in one step. Raises WorkError.
    """
    graph = read(variant.path)
    found = [layer(graph, f"One layer of {variant.name}")]
    data: dict[str, Any] = {"variant": variant.name, "model": str(variant.path), "operators": graph.histogram()}
    if base is None:
        return Section(tuple(found), ()), data
    notes, names, said = [], {"layer", "operators"}, []
    steps = _between(base, variant)
    for number, step in enumerate(steps, 1):
        difference = _difference(step)
        said.append({"pass": step.label, **difference.to_dict()})
        notes.append(f"{step.label}{':' if difference.changed else ''} {summary(difference)}")
        if difference.changed:
            name = file_name(f"{number}-{step.label}" if len(steps) > 1 else step.label, names)
            found += _pictures(difference, step.label, name, hops, MOST_REWRITES)
    whole = compare(read(base.path), graph)
    counted = operators(whole, f"Operators of {variant.name} against {base.name}", "operators")
    found += [counted] if counted else []
    if not steps:
        notes.append(f"{variant.name} and {base.name} are one graph: there is nothing to compare.")
    data |= {"against": base.name, "steps": said, "histogram": whole.histogram()}
    return Section(tuple(found), tuple(notes)), data


def _between(base: Variant, variant: Variant) -> Sequence[Step]:
    """The passes from `base` to `variant`; one step from one to the other where no passes lead there."""
    if base.path == variant.path:
        return ()
    for i, step in enumerate(variant.steps):
        if step.before == base.path:
            return variant.steps[i:]
    return (Step(f"{base.name} → {variant.name}", base.path, variant.path),)


def _difference(step: Step) -> Difference:
    return compare(read(Path(step.before)), read(Path(step.after)))


def _pictures(difference: Difference, about: str, name: str, hops: int, most: int) -> list[Picture]:
    both = before_and_after(difference, about, name)
    return [*([both] if both else []), *rewrites(difference, about, name, hops, most)]
