"""What goes wrong, in two kinds, and how a message names the nearest valid word.

The command line turns :class:`InputError` into exit status 2 and :class:`WorkError` into exit status 1; both are
printed as one or two lines without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlamaBenchError(Exception):
    """Base of every error that is meant for the user's eyes."""

    exit_status = 1


class InputError(LlamaBenchError):
    """The user's input is wrong: a sweep file, an option, a path, results of another schema."""

    exit_status = 2


class WorkError(LlamaBenchError):
    """Work that was asked for correctly failed: an export, a pass, a session, a node, a full disk."""

    exit_status = 1


class GpuMemoryError(WorkError):
    """A GPU has too little memory left. It may be enough where fewer arms share it, or on another node."""


class StoreError(WorkError):
    """The place of a store failed: no connection, no room, no permission. It may work later, or elsewhere."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the valid word closest to `word`, or the valid words when none is close.

    Meant to end an error message, so it starts with its own separator.
    """
    words = sorted(set(valid))
    close = difflib.get_close_matches(word.lower(), [w.lower() for w in words], n=1, cutoff=0.6)
    if close:
        match = next(w for w in words if w.lower() == close[0])
        return f"; did you mean {match!r}?"
    shown = ", ".join(words[:12]) + (", …" if len(words) > 12 else "")
    return f"; valid: {shown}" if words else ""
