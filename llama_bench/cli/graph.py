"""`graph`: pictures of a variant's graph, and of what each of its passes did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import AsJson, StoreAt, build_missing, open_store, out, print_json, read_sweep
from llama_bench.errors import InputError, WorkError, nearest

if TYPE_CHECKING:
    from llama_bench.report.graphs.sections import Section
    from llama_bench.report.graphs.variants import Place, Variant
    from llama_bench.store import Store

EXAMPLES = """
What the passes of a recipe do, each before and after; what the store lacks is built:
  python -m llama_bench graph sweeps/quick.yaml --recipe fuse_transpose_into_gemm
Of a run whose graphs are still beside it, against another recipe:
  python -m llama_bench graph results/smollm2 --recipe fused_int4 --against fused
One layer of any ONNX model, and two models side by side:
  python -m llama_bench graph model.onnx
  python -m llama_bench graph served/smollm2-int4 --against model.onnx --netron
"""

NETRON = "pip install netron"


def command(
    variant: Annotated[
        str,
        typer.Argument(
            metavar="VARIANT",
            help="A sweep file or a run, with --recipe; a .onnx file; a folder with a model.onnx, such as an artifact.",
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Which recipe of the sweep or run; the baseline if left out.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="Another recipe, a .onnx file or a folder; a recipe's baseline if left out."),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Which model; the first if left out.")] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="WORKLOAD", help="Which workload; the first if left out.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write to; graphs/VARIANT.")
    ] = None,
    hops: Annotated[int, typer.Option(min=0, help="How many arrows around a rewrite are drawn.")] = 1,
    netron: Annotated[bool, typer.Option("--netron", help=f"Open the models in Netron too ({NETRON}).")] = False,
    as_json: AsJson = False,
    store: StoreAt = "./results",
) -> None:
    """Draw a computation graph: one layer, and what each pass removed, added and fused. Nothing is measured.

    Repeated layers are drawn once, operators are coloured and lettered by kind. For each pass there are the graph
    before and after, its most frequent rewrites with their neighbours, and a chart of the operators; SVG and PNG.
    """
    from llama_bench.report.drawing import file_name
    from llama_bench.report.graphs.sections import of_variant

    viewer = _netron() if netron else None
    asked = _Asked(variant, recipe, against, model, workload)
    with TemporaryDirectory(prefix="llama-bench-") as scratch, _resolved(asked, store, Path(scratch)) as (drawn, base):
        section, data = of_variant(drawn, base, hops)
        written = _write(section, folder or Path("graphs") / file_name(drawn.name, set()))
        if as_json:
            print_json({**data, "notes": list(section.notes), "files": [str(path) for path in written]})
        else:
            for line in (*section.notes, *map(str, written)):
                out().print(line, markup=False, soft_wrap=True)
        if viewer is not None:
            _open(viewer, [one.path for one in (base, drawn) if one is not None])


@dataclass(frozen=True, slots=True)
class _Asked:
    """The words of the command line."""

    variant: str
    recipe: str | None
    against: str | None
    model: str | None
    workload: str | None


@contextmanager
def _resolved(asked: _Asked, store: str, scratch: Path) -> Iterator[tuple[Variant, Variant | None]]:
    """Yield the variant that is meant and what it is compared with. Raises InputError, WorkError."""
    path = Path(asked.variant)
    if path.suffix in (".yaml", ".yml"):
        yield _of_sweep(asked, path, open_store(store), scratch)
    elif path.is_file() or path.suffix == ".onnx" or (path / "model.onnx").is_file():
        named = {"recipe": asked.recipe, "model": asked.model, "workload": asked.workload}
        if wrong := next((option for option, word in named.items() if word is not None), None):
            raise InputError(f"--{wrong} {named[wrong]}: {path} is one model; only a sweep or a run has several")
        drawn = _of_file(path, scratch)
        yield drawn, _other(asked, scratch, drawn)
    elif "://" not in asked.variant and not path.exists():
        raise InputError(f"{path}: no such file or folder (a sweep file, a run, a .onnx file or a folder with one)")
    else:
        yield _of_run(asked, scratch)


def _of_sweep(asked: _Asked, file: Path, store: Store, scratch: Path) -> tuple[Variant, Variant | None]:
    from llama_bench import versions
    from llama_bench.plan import make
    from llama_bench.report.graphs.variants import Place, choose

    planned = make(read_sweep(file), versions.stages())
    places = [
        Place(
            cell.model.label,
            cell.workload_name,
            cell.baseline,
            {arm.name: arm.variant for arm in cell.arms if not arm.control},
        )
        for cell in planned.cells
    ]
    place = choose(places, str(file), asked.model, asked.workload)
    for name in _recipes(asked, place):
        build_missing(planned, place.recipes[name], store)
    return _of_place(asked, place, store, scratch)


def _of_run(asked: _Asked, scratch: Path) -> tuple[Variant, Variant | None]:
    from llama_bench.report.graphs.variants import choose, places

    store, there = places(asked.variant)
    if not there:
        raise InputError(f"{asked.variant}: nothing was built in this run")
    place = choose(there, asked.variant, asked.model, asked.workload)
    _recipes(asked, place)
    try:
        return _of_place(asked, place, store, scratch)
    except WorkError as error:
        raise WorkError(f"{error}; the run's graphs are gone: name its sweep file, and they are built again") from error


def _recipes(asked: _Asked, place: Place) -> list[str]:
    """Return the recipes of `place` that are needed. Raises InputError for an unknown one."""
    wanted = asked.recipe or place.baseline
    if wanted not in place.recipes:
        raise InputError(f"--recipe {wanted}: not a recipe of {asked.variant}{nearest(wanted, place.recipes)}")
    base = asked.against or place.baseline
    if base not in place.recipes and not Path(base).exists():
        raise InputError(f"--against {base}: no file and no recipe of {asked.variant}{nearest(base, place.recipes)}")
    return [wanted, *([base] if base in place.recipes else [])]


def _of_place(asked: _Asked, place: Place, store: Store, scratch: Path) -> tuple[Variant, Variant | None]:
    from llama_bench.report.graphs.variants import variant

    def named(name: str) -> Variant:
        title = f"{name}, {place.model} {place.workload}"
        return variant(store, title, place.recipes[name], scratch)

    wanted, *bases = _recipes(asked, place)
    drawn = named(wanted)
    if not bases:
        return drawn, _other(asked, scratch, drawn)
    return drawn, named(bases[0]) if asked.against or bases[0] != wanted else None


def _of_file(path: Path, scratch: Path) -> Variant:
    """Return the model at `path`; an artifact in a store knows the passes that led to it."""
    from llama_bench.report.graphs.read import read
    from llama_bench.report.graphs.variants import Variant, variant
    from llama_bench.store import Store

    if (path / "manifest.json").is_file() and path.resolve().parent.name == "artifacts":
        store = Store(path.resolve().parent.parent, write=False)
        return variant(store, store.manifest(path.resolve().name)["label"], path.resolve().name, scratch)
    name, file = (path.resolve().name, path / "model.onnx") if path.is_dir() else (path.stem, path)
    try:
        read(file)
    except WorkError as error:  # a file that somebody names and that is no model is wrong input, not failed work
        raise InputError(str(error)) from None
    return Variant(name, file)


def _other(asked: _Asked, scratch: Path, drawn: Variant) -> Variant | None:
    """Return what a file is compared with: what --against says, or the export that an artifact was made from."""
    from llama_bench.report.graphs.variants import Variant

    if asked.against is not None:
        return _of_file(Path(asked.against), scratch)
    return Variant("the export", drawn.steps[0].before) if drawn.steps else None


def _write(section: Section, folder: Path) -> list[Path]:
    from llama_bench.report.drawing import png
    from llama_bench.report.files import write_files

    files: dict[str, str | bytes] = {}
    for picture in section.pictures:
        files |= {f"{picture.name}.svg": picture.svg, f"{picture.name}.png": png(picture.svg)}
    return write_files(folder, files)


def _netron() -> Any:
    try:
        import netron
    except ImportError:
        raise InputError(f"--netron: Netron is not installed here; {NETRON}") from None
    return netron


def _open(viewer: Any, paths: Sequence[Path]) -> None:
    """Serve the models to the browser until Ctrl-C."""
    for path in paths:
        host, port = viewer.start(str(path))
        out().print(f"{path}: http://{host}:{port} (Ctrl-C ends it)", markup=False, soft_wrap=True)
    viewer.wait()
