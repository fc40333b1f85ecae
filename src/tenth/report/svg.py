"""The svg kit: a chart says what it shows, and this draws it, escaped, in the same way everywhere.

A picture is drawn for a given width, because text in a scaled-down picture cannot be read on a phone: a page
holds a wide and a narrow drawing and shows one. Looks are classes of report.css, since pages forbid inline
styles: a class such as `kv` sets the colour --own, and `area`, `mark`, `line` and `whisker` draw with it. The
colours (Okabe-Ito hues) are safe for colour-blind readers, and nothing is told by colour alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

MarkShape = Literal["circle", "square", "diamond", "triangle"]
Anchor = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]  # left, top, right, bottom
LETTER = 0.56  # mean width of a letter in units of the font size
CLEAR = 9.0  # of a mark's middle, where no label may stand
RIGHT, BOTTOM = 14.0, 46.0  # of a plot, beside and below its axes
_DENSE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)  # factors of ticks
_AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))


def element(tag: str, *inside: str, **attributes: object) -> Markup:
    """One element; texts and values are escaped, empty attributes left out. `font_size` is font-size."""
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    pairs = [
        Markup(' {}="{}"').format(name, _short(value)) for name, value in names if value not in ("", None)
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup("").join(pairs), Markup("").join(inside))


def _short(value: object) -> object:
    """Coordinates to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def width_of(text: str, size: float) -> float:
    """About how wide a text is."""
    return len(text) * LETTER * size


def way(*steps: str | float) -> str:
    """Write letters and coordinates as the `d` of a path: "M", 1.0, 2.0, "H", 3.0 become "M1 2H3"."""
    return re.sub(r" ?([A-Za-z]) ?", r"\1", " ".join(str(_short(step)) for step in steps))


def through(points: Sequence[tuple[float, float]]) -> str:
    """The `d` of a path along points."""
    steps = [step for x, y in points for step in ("L", x, y)]
    return way("M", *steps[1:])


def key(*inside: str, css: str = "", width: int = 14, height: int = 14) -> Markup:
    """A mark in a line of text, such as a legend's."""
    box = f"0 0 {width} {height}"
    return element("svg", *inside, class_=f"key {css}".rstrip(), viewBox=box, aria_hidden="true")


def swatch(fill: str) -> Markup:
    """A small square of a colour."""
    return key(element("rect", width=14, height=14, rx=4, fill=fill))


def mark(shape: MarkShape, x: float, y: float, size: float, css: str, title: str = "") -> Markup:
    """A mark; all shapes of a size look about as large. title: what the pointer is told."""
    inside = [element("title", title)] if title else []
    s = size
    if shape == "circle":
        return element("circle", *inside, class_=css, cx=x, cy=y, r=s)
    drawn = {
        "square": way("M", x - 0.88 * s, y - 0.88 * s, "h", 1.76 * s, "v", 1.76 * s, "h", -1.76 * s, "z"),
        "diamond": way(
            "M", x, y - 1.25 * s, "l", 1.25 * s, 1.25 * s, -1.25 * s, 1.25 * s, -1.25 * s, -1.25 * s, "z"
        ),
        "triangle": way("M", x, y - 1.2 * s, "l", 1.2 * s, 2.1 * s, "h", -2.4 * s, "z"),
    }[shape]
    return element("path", *inside, class_=css, d=drawn)


class Drawing:
    """A picture of a size in CSS pixels, drawn from back to front."""

    def __init__(self, width: float, height: float, label: str, role: str = "img") -> None:
        self.width, self.height = float(width), float(height)
        self._label, self._role = label, role  # the label is read to those who cannot see it
        self._body: list[Markup] = []

    def add(self, *elements: Markup) -> None:
        """Draw elements over what is there."""
        self._body += elements

    @contextmanager
    def within(self, tag: str, **attributes: object) -> Iterator[None]:
        """Put all that is drawn in the block into one element."""
        outside, self._body = self._body, []
        yield
        outside.append(element(tag, *self._body, **attributes))
        self._body = outside

    def text(
        self, x: float, y: float, *words: str, size: float = 12, css: str = "", anchor: Anchor = "start"
    ) -> None:
        """Words whose baseline begins, has its middle or ends at a point."""
        side = "" if anchor == "start" else anchor
        self.add(element("text", *words, class_=css, x=x, y=y, font_size=f"{size:g}", text_anchor=side))

    def path(self, d: str, css: str) -> None:
        """A path out of `way` or `through`."""
        self.add(element("path", class_=css, d=d))

    def rect(self, box: Box, css: str = "", *, title: str = "", rx: int = 0, fill: str = "") -> None:
        """A rectangle; `fill` for a colour that has no class."""
        left, top, right, bottom = map(float, box)
        inside = [element("title", title)] if title else []
        size = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        self.add(element("rect", *inside, **size, rx=rx or "", class_=css, fill=fill))

    def mark(self, shape: MarkShape, x: float, y: float, size: float, css: str, title: str = "") -> None:
        """Add a mark (`svg.mark`)."""
        self.add(mark(shape, x, y, size, css, title))

    def whisker(self, x: float, low: float, high: float, css: str) -> None:
        """An error bar upright, with feet."""
        feet = ("M", x - 4, low, "h", 8, "M", x - 4, high, "h", 8)
        self.path(way("M", x, low, "V", high, *feet), f"whisker {css}")

    def markup(self) -> Markup:
        """The finished picture as an svg element."""
        box = f"0 0 {self.width:g} {self.height:.0f}"
        return element("svg", *self._body, viewBox=box, role=self._role, aria_label=self._label)


@dataclass(frozen=True)
class Scale:
    """Which values an axis has, from end to end, and at which of them there are ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value stands, 0 to 1; what is beyond an end stands at the end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def from_zero(end: float, parts: int = 5) -> Scale:
    """The scale from zero to an end, with ticks at round steps."""
    step = _round_step(end / parts)
    return Scale(0.0, end, tuple(round(i * step, 9) for i in range(math.floor(end / step + 1e-9) + 1)))


def linear(values: Sequence[float], parts: int = 5) -> Scale:
    """Around values, with room for labels on both sides."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.22, high * 0.06, 0.01)
    low, high = max(low - room, 0.0), high + room
    step = _round_step((high - low) / parts)
    places = range(math.ceil(low / step), math.floor(high / step) + 1)
    return Scale(low, high, tuple(round(i * step, 9) for i in places))


def logarithmic(values: Sequence[float], room: float = 1.8, *, dense: bool = False) -> Scale:
    """Around values above zero, a factor of `room` on both sides. dense: more ticks where it spans little."""
    low, high = min(values) / room, max(values) * room
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in (*((_DENSE,) if dense else ()), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{power}") for power in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return Scale(low, high, tuple(ticks), log=True)


def around(values: Sequence[float], pixels: float) -> Scale:
    """Around values above zero; logarithmic where they span more than a factor of four."""
    if max(values) > 4 * min(values):
        return logarithmic(values, 1.4)
    return linear(values, round(pixels / 70) + 2)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten: a distance between ticks."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


@dataclass(frozen=True)
class Label:
    """The name of a mark, and a figure after it."""

    name: str
    value: str = ""
    size: float = 12.0
    css: str = ""
    gaps: tuple[float, ...] = (13.0,)  # distances from the mark, in pixels, that are tried
    must: bool = False  # where nowhere is free, write it over something else


@dataclass(frozen=True)
class Axis:
    """A scale and what it is of, with the unit."""

    scale: Scale
    words: str


class Plot(Drawing):
    """Two axes with ticks and a grid; what is drawn between them is given in values, labels find a place."""

    def __init__(
        self,
        size: tuple[float, float],
        label: str,
        x: Axis,
        y: Axis,
        margin: tuple[float, float] = (58.0, 34.0),
        role: str = "img",
    ) -> None:
        """margin: left and above, in pixels."""
        super().__init__(*size, label, role)
        self.left, self.top = margin
        self.right, self.floor = self.width - RIGHT, self.height - BOTTOM
        self._x, self._y = x.scale, y.scale
        self._taken: list[Box] = []
        self.text(0, 14, y.words, css="soft")
        for value in y.scale.ticks:
            self.path(way("M", self.left, self.y_of(value), "H", self.right), "grid")
            self._tick(self.left - 8, self.y_of(value) + 4, value, "end")
        for value in x.scale.ticks:
            self.path(way("M", self.x_of(value), self.floor, "v", 5), "axis")
            self._tick(self.x_of(value), self.floor + 19, value, "middle")
        self.path(way("M", self.left, self.floor, "H", self.right), "axis")
        self.text(self.right, self.height - 6, x.words, css="soft", anchor="end")

    def _tick(self, x: float, y: float, value: float, anchor: Anchor) -> None:
        self.text(x, y, f"{value:g}", size=11, css="soft tick", anchor=anchor)

    def x_of(self, value: float) -> float:
        """The pixel of a value on the horizontal axis."""
        return self.left + self._x.share(value) * (self.right - self.left)

    def y_of(self, value: float) -> float:
        """The pixel of a value on the vertical axis."""
        return self.floor - self._y.share(value) * (self.floor - self.top)

    def curve(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Draw a line along values."""
        self.path(through([(self.x_of(x), self.y_of(y)) for x, y in points]), css)

    def errors(self, x: float, y: float, spread: float, css: str) -> None:
        """Draw a whisker as long as a value's spread."""
        self.whisker(self.x_of(x), self.y_of(y - spread), self.y_of(y + spread), css)

    def keep_clear(self, x: float, y: float) -> None:
        """No label may stand over this point."""
        across, down = self.x_of(x), self.y_of(y)
        self._taken.append((across - CLEAR, down - CLEAR, across + CLEAR, down + CLEAR))

    def limit(self, x: float, words: str) -> None:
        """A broken line upright, such as a budget; no label will stand over it."""
        across = self.x_of(x)
        self._taken.append((across - 2, self.top, across + 2, self.floor))
        self.path(way("M", across, self.top - 8, "V", self.floor), "budget")
        self.text(across - 6, self.top + 2, words, css="strong", anchor="end")

    def emptiest(self, *boxes: Box) -> Box:
        """The box with the least in it; no label will stand there."""
        crowds = [sum(_overlap(box, other) for other in self._taken) for box in boxes]
        self._taken.append(boxes[crowds.index(min(crowds))])
        return self._taken[-1]

    def label(self, x: float, y: float, label: Label) -> None:
        """Write a label at the first free place around a point, with a line to it from afar."""
        across, down = self.x_of(x), self.y_of(y)
        wide = width_of(label.name + label.value, label.size) + label.size * LETTER / 2 + 4
        place = self._free(across, down, (wide, label.size + 3), label.gaps)
        if place is None:
            if not label.must:
                return
            left = min(max(across + label.gaps[0], self.left), self.width - 2 - wide)
            place = (left, down - label.size / 2, left + wide, down + label.size / 2), label.gaps[0]
        box, gap = place
        self._taken.append(box)
        value = [element("tspan", label.value, class_="soft", font_weight=400)] if label.value else []
        baseline = (box[1] + box[3]) / 2 + label.size * 0.35
        self.text(box[0] + 2, baseline, label.name, *value, size=label.size, css=label.css)
        if gap > label.gaps[0]:
            edge = (min(max(across, box[0]), box[2]), min(max(down, box[1]), box[3]))
            self.path(through([(across, down), edge]), "leader")

    def _free(
        self, x: float, y: float, size: tuple[float, float], gaps: Sequence[float]
    ) -> tuple[Box, float] | None:
        """(a box within the plot and over nothing that is taken, its gap); nearer ones first."""
        wide, tall = size
        for gap in gaps:
            for dx, dy in _AROUND:
                left = x + dx * gap - (wide / 2 if dx == 0 else wide if dx < 0 else 0)
                middle = y + dy * gap * (1.0 if dx == 0 else 0.8)
                box = (left, middle - tall / 2, left + wide, middle + tall / 2)
                if self._holds(box) and not any(_overlap(box, other) for other in self._taken):
                    return box, gap
        return None

    def _holds(self, box: Box) -> bool:
        """Whether a label may stand there; it may reach into the margins, but not over the axes' words."""
        return box[0] >= self.left and box[1] >= 18 and box[2] <= self.width - 2 and box[3] <= self.floor


def _overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
