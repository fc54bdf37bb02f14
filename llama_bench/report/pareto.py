"""The chart of speed, accuracy and size together: one a cell that has approximations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl

from llama_bench.report.drawing import BLUE, INK, PAPER, VERMILLION, Chart, file_name, themed, ticks
from llama_bench.report.labels import Box, Label, Mark, Name, place
from llama_bench.report.table import plural
from llama_bench.report.tradeoffs import LOSS_NAMES, loss, megabytes

Row = Mapping[str, Any]

WIDTH, HEIGHT = 720, 440
LEAST_AREA, MOST_AREA = 30.0, 420.0  # of a mark, in square pixels; its size on disk lies between
FONT_SIZE, LETTER = 11, 6.1  # pixels, and the mean width of a letter at that size

COLOURS = {"exact": BLUE, "approximate": VERMILLION}
SHAPES = {"onnxruntime": "circle", "another engine": "square"}

FLOORS = {"perplexity": 1e-4, "kl": 1e-5, "cosine": 1e-5, "tokens": 1e-2}
"""What a loss is of → the loss below which the axis is a straight line to zero, so that zero has a place on it."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a time (relative to the baseline, logarithmic) and a loss (symmetric logarithm) lie, in pixels."""

    left: float
    right: float
    most: float
    floor: float

    @classmethod
    def around(cls, rows: Sequence[Row], floor: float) -> Axes:
        """Leave room for names at both sides."""
        times = [1 / row[end] for row in rows for end in ("low", "high")]
        room = max((max(times) / min(times)) ** 0.08, 1.05)
        return cls(min(times) / room, max(times) * room, max(max(row["loss"] for row in rows), 10 * floor), floor)

    @property
    def _heights(self) -> tuple[float, float]:
        top = math.log1p(self.most / self.floor)
        return -0.1 * top, 1.08 * top

    @property
    def losses(self) -> tuple[float, float]:
        """The losses at the lower and the upper end: below zero there is room for marks, and nothing to measure."""
        low, high = self._heights
        return -self.floor * math.expm1(-low), self.floor * math.expm1(high)

    def pixels(self, time: float, loss: float) -> tuple[float, float]:
        low, high = self._heights
        x = math.log(time / self.left) / math.log(self.right / self.left)
        y = (math.copysign(math.log1p(abs(loss) / self.floor), loss) - low) / (high - low)
        return x * WIDTH, (1 - y) * HEIGHT

    def values(self, x: float, y: float) -> tuple[float, float]:
        """Return time and loss at a pixel: the inverse of `pixels`."""
        low, high = self._heights
        height = low + (1 - y / HEIGHT) * (high - low)
        time = self.left * (self.right / self.left) ** (x / WIDTH)
        return time, math.copysign(self.floor * math.expm1(abs(height)), height)


def charts(pareto: pl.DataFrame) -> list[Chart]:
    """Return one chart a cell in which an approximation has a place, from the view `pareto`."""
    names: set[str] = set()
    cells = (pareto.filter(pl.col("cell") == cell) for cell in pareto["cell"].unique(maintain_order=True))
    return [_chart(rows.to_dicts(), names) for rows in cells if (rows["class"] == "approximate").any()]


def _chart(rows: Sequence[Row], names: set[str]) -> Chart:
    import altair as alt

    first, baseline = rows[0], next(row["recipe"] for row in rows if row["baseline"])
    of = first["loss_of"]
    axes = Axes.around(rows, FLOORS[of])
    most = max(row["disk_bytes"] for row in rows)
    points = [_point(row, most) for row in sorted(rows, key=lambda row: (row["front"], -row["disk_bytes"]))]
    on, off = ([point for point in points if point["front"] is one] for one in (True, False))
    line = front_line(on)
    labels = _labels(points, line, axes)
    x, y = _x(axes, baseline), _y(axes, of)
    color = alt.Color("class:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), title=None)
    told = alt.Undefined if len({point["engine"] for point in points}) > 1 else None
    shapes = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    shape = alt.Shape("engine:N", scale=shapes, title=None, legend=told)
    size = alt.Size("megabytes:Q", title="On disk (MB)", **_sizes(rows, most))
    layers = [
        alt.Chart(pl.DataFrame({"time": [1.0]})).mark_rule(color=INK, strokeDash=[4, 3], aria=False).encode(x=x("time"))
    ]
    if len(line) > 1:
        joined = alt.Chart(pl.DataFrame(line))
        layers.append(
            joined.mark_line(color=INK, strokeWidth=1.2, opacity=0.6, aria=False).encode(x=x("time"), y=y("loss"))
        )
    bars = alt.Chart(pl.DataFrame(on)).mark_rule(strokeWidth=1.2, opacity=0.8, aria=False)
    layers.append(bars.encode(x=x("low"), x2="high:Q", y=y("loss"), color=color))
    for data, fill, stroke in ((off, 0.06, 0.55), (on, 0.85, 1.0)):
        if not data:
            continue
        marks = alt.Chart(pl.DataFrame(data)).mark_point(
            filled=True, fillOpacity=fill, strokeOpacity=stroke, strokeWidth=1.2
        )
        placed = marks.encode(x=x("time"), y=y("loss"), color=color, stroke=color.copy(), shape=shape, size=size)
        layers.append(placed.encode(description="words:N"))
    layers += _named(labels, axes, x, y)
    title = f"{first['model']} · {first['workload']} on target {first['target']}: time, accuracy, size"
    subtitle = "filled: beaten by no arm in all three; hollow: beaten"
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=alt.TitleParams(title, subtitle=subtitle))
    name = file_name(f"pareto-{first['target']}-{first['model']}-{first['workload']}", names)
    return Chart(name, _caption(title, rows, baseline, of, len(points) - len(labels)), themed(chart))


def _caption(title: str, rows: Sequence[Row], baseline: str, of: str, unnamed: int) -> str:
    on = sorted((row for row in rows if row["front"]), key=lambda row: -row["speedup"])
    said = ", ".join(f"{row['recipe']} ({row['speedup']:.2f}×, {megabytes(row['disk_bytes'])} MB)" for row in on)
    left_out = f" {plural(unnamed, 'beaten arm')} without a name {'are' if unnamed > 1 else 'is'} in the tables."
    return (
        f"{title}. Left is faster than {baseline}, lower is more accurate ({LOSS_NAMES[of]}), smaller marks "
        f"take less space on disk; bars are the intervals of the arms that nothing beats: {said}. The line joins "
        f"those that are best in time and accuracy alone.{left_out if unnamed else ''}"
    )


def front_line(points: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the points that no other is left of and below, from left to right: the front without sizes."""
    line: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["time"], point["loss"])):
        if not line or point["loss"] < line[-1]["loss"]:
            line.append({"time": point["time"], "loss": point["loss"]})
    return line


def _point(row: Row, most: float) -> dict[str, Any]:
    """An arm's mark; a perplexity below torch's is drawn where no loss is."""
    return {
        "recipe": row["recipe"],
        "time": 1 / row["speedup"],
        "low": 1 / row["high"],
        "high": 1 / row["low"],
        "loss": max(row["loss"], 0.0),
        "class": row["class"] if row["class"] in COLOURS else "exact",
        "engine": "onnxruntime" if row["engine"] in (None, "onnxruntime") else "another engine",
        "megabytes": row["disk_bytes"] / 1e6,
        "front": row["front"],
        "baseline": row["baseline"],
        "words": _words(row),
        "radius": math.sqrt(_area(row["disk_bytes"], most) / math.pi),
    }


def _words(row: Row) -> str:
    lost = f"{LOSS_NAMES[row['loss_of']]} {loss(row['loss'], row['loss_of'])}"
    beaten = "nothing" if row["front"] else str(row["beaten_by"])
    return f"{row['recipe']}: {row['speedup']:.2f}×; {lost}; {megabytes(row['disk_bytes'])} MB; beaten by {beaten}"


def _area(size: float, most: float) -> float:
    return LEAST_AREA + (MOST_AREA - LEAST_AREA) * size / most


def _sizes(rows: Sequence[Row], most: float) -> dict[str, Any]:
    """The scale of the marks, and the sizes that the legend shows: the least, the largest, and one between."""
    import altair as alt

    shown = sorted({float(f"{row['disk_bytes'] / 1e6:.3g}") for row in rows})
    shown = [shown[0], shown[len(shown) // 2], shown[-1]] if len(shown) > 3 else shown
    legend = alt.Legend(values=shown, format=",.3~r", symbolFillColor="transparent", symbolStrokeColor=INK)
    return {"scale": alt.Scale(domain=[0, most / 1e6], range=[LEAST_AREA, MOST_AREA]), "legend": legend}


def _x(axes: Axes, baseline: str) -> Any:
    import altair as alt

    scale = alt.Scale(type="log", domain=[axes.left, axes.right], nice=False)
    axis = alt.Axis(values=ticks(axes.left, axes.right), format="~g")
    title = f"Time of a run ({baseline} = 1), faster to the left"
    return lambda field: alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)


def _y(axes: Axes, of: str) -> Any:
    import altair as alt

    scale = alt.Scale(type="symlog", constant=axes.floor, domain=list(axes.losses), nice=False)
    powers = range(math.floor(math.log10(axes.floor)), math.ceil(math.log10(axes.most)) + 1)
    values = [0.0, *(10.0**power for power in powers if axes.floor <= 10.0**power * 1.001 <= axes.losses[1])]
    share = of in ("perplexity", "tokens")
    # the axis would round its numbers to the distance between them, which a symmetric logarithm has none of
    axis = alt.Axis(values=values, labelExpr=f"format(datum.value, '{'.6~%' if share else '.6~g'}')")
    title = {"perplexity": "Perplexity above torch's", "tokens": "Tokens unlike torch's"}.get(of, LOSS_NAMES[of])
    return lambda field: alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)


def _labels(points: Sequence[Row], line: Sequence[Row], axes: Axes) -> list[Label]:
    """The names that have room: the baseline's and those of the front in any case, then the beaten ones."""
    marks = [(*axes.pixels(point["time"], point["loss"]), point["radius"]) for point in points]
    order = sorted(
        range(len(points)), key=lambda i: (not points[i]["front"], not _needed(points[i]), points[i]["time"])
    )
    names = [Name(points[i]["recipe"], marks[i], _needed(points[i]), points[i]["front"]) for i in order]
    ends = [axes.pixels(point["time"], point["loss"]) for point in line]
    bars = [
        tuple(axes.pixels(point[end], point["loss"]) for end in ("low", "high")) for point in points if point["front"]
    ]
    drawn = [dot for one, other in (*pairwise(ends), *bars) for dot in _dots(one, other)]
    return place(names, [*marks, *drawn], Box(0, 0, WIDTH, HEIGHT), FONT_SIZE, LETTER)


def _needed(point: Row) -> bool:
    return bool(point["front"] or point["baseline"])


def _dots(one: tuple[float, float], other: tuple[float, float]) -> list[Mark]:
    """A line as dots so close that no name fits between them."""
    count = max(int(math.dist(one, other) / (FONT_SIZE / 2)), 1)
    shares = (i / count for i in range(count + 1))
    return [(one[0] + (other[0] - one[0]) * t, one[1] + (other[1] - one[1]) * t, 1.0) for t in shares]


def _named(labels: Sequence[Label], axes: Axes, x: Any, y: Any) -> Iterator[Any]:
    """The names, and a thin line to those that stand apart from their marks."""
    import altair as alt

    leaders = []
    for label in labels:
        if label.apart:
            (time, loss), (to_time, to_loss) = axes.values(*label.name.mark[:2]), axes.values(*label.near)
            leaders.append({"time": time, "loss": loss, "to_time": to_time, "to_loss": to_loss})
    if leaders:
        rules = alt.Chart(pl.DataFrame(leaders)).mark_rule(color=INK, strokeWidth=0.6, opacity=0.5, aria=False)
        yield rules.encode(x=x("time"), y=y("loss"), x2="to_time:Q", y2="to_loss:Q")
    for bold in (True, False):
        texts = []
        for label in labels:
            if label.name.bold is bold:
                time, loss = axes.values(*label.box.middle)
                texts.append({"time": time, "loss": loss, "recipe": label.name.text})
        font: dict[str, Any] = {"fontSize": FONT_SIZE, "fontWeight": "bold" if bold else "normal"}
        for style in ({"stroke": PAPER, "strokeWidth": 3.0}, {"color": INK}):  # paper round the letters, then they
            if texts:
                mark = alt.Chart(pl.DataFrame(texts)).mark_text(**font, **style, aria=False)
                yield mark.encode(x=x("time"), y=y("loss"), text="recipe:N")
