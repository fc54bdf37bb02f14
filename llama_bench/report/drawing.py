"""What all charts share: colours, fonts, readable axes, and drawing to SVG and PNG.

Altair describes a chart, vl-convert draws it on this machine; nothing is fetched.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# Okabe & Ito's palette, which readers with any colour vision tell apart; on dark paper the page lightens it
BLUE, VERMILLION, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6e6e6e"
INK, FAINT, PAPER = "#1f2328", "#d8dee4", "#ffffff"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"

STEPS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Readable numbers within a power of ten, from the densest choice to the sparsest."""


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn: the name of its file, what it shows in words, and its Vega-Lite specification."""

    name: str
    caption: str
    spec: Mapping[str, Any]

    def svg(self) -> str:
        """Return the chart as SVG text."""
        return self._svg

    @cached_property
    def _svg(self) -> str:  # a page and a file of its own show the same drawing, and drawing takes a tenth of a second
        import vl_convert

        return str(vl_convert.vegalite_to_svg(json.dumps(self.spec)))


def png(svg: str, scale: float = 2.0) -> bytes:
    """Return SVG text as a PNG; `scale` 2 is sharp on screens with two device pixels a pixel."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=scale))


def ticks(low: float, high: float) -> list[float]:
    """At most eight readable numbers between `low` and `high`, for a logarithmic axis."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in STEPS:
        ticks = [tick for e in exponents for step in steps if low <= (tick := step * 10.0**e) <= high]
        if len(ticks) <= 8:
            break
    return ticks


_TEXT = {
    "labelFont": FONT,
    "titleFont": FONT,
    "labelColor": INK,
    "titleColor": INK,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
}

CONFIG: Mapping[str, Any] = {
    "background": PAPER,
    "font": FONT,
    "padding": 12,
    "axis": {**_TEXT, "gridColor": FAINT, "domainColor": INK, "tickColor": INK},
    "legend": {**_TEXT, "orient": "bottom", "symbolSize": 80, "symbolOpacity": 1, "labelLimit": 320},
    "title": {
        "font": FONT,
        "subtitleFont": FONT,
        "color": INK,
        "subtitleColor": INK,
        "fontSize": 15,
        "subtitleFontSize": 12,
        "anchor": "start",
        "subtitlePadding": 6,
        "offset": 10,
    },
    "view": {"stroke": FAINT, "continuousWidth": 300, "continuousHeight": 300},
}
"""Fonts, colours and sizes of every chart, as Vega-Lite's config."""


def themed(chart: Any) -> Mapping[str, Any]:
    """Return an altair chart in the dress of all charts, as a Vega-Lite specification."""
    return {**chart.to_dict(validate=False), "config": CONFIG}


def unchecked() -> AbstractContextManager[None]:
    """Let altair build charts without checking each against Vega-Lite's schema, which takes most of the time.

    The tests check them.
    """
    from altair.utils import schemapi

    return schemapi.debug_mode(False)


LONGEST = 120
"""Characters of a file's name: file systems take 255 bytes with the ending."""


def file_name(name: str, taken: set[str]) -> str:
    """Return `name` as a file name that is not in `taken`, and take it."""
    slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", name)[:LONGEST].strip("-.") or "chart"
    number, candidate = 1, slug
    while candidate.lower() in taken:
        number += 1
        candidate = f"{slug}-{number}"
    taken.add(candidate.lower())
    return candidate
