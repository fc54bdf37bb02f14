"""Which optimisations make this Llama faster on this hardware, by how much, at what cost, and how sure are we?

`python -m llama_bench --help` is the way in; :func:`load` gives the results of a run to Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_bench.stats.views import Frames

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path) -> Frames:
    """Return the results at `path` (a run, a sweep's newest run, or a store) as polars LazyFrames.

    `path` is a folder or an object store's URI. Raises InputError for what is no result, another schema version or a
    truncated part.
    """
    from llama_bench.stats.views import load as read  # polars is heavy, and `--help` does without it

    return read(path)
