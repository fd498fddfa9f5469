"""SVG for the pages: texts, boxes, arrows and plots, in colours that a light and a dark page can show.

Texts stay texts, so pictures are small, and a search finds their words. `python tests/pages.py --tables` writes
all pictures of tests/pictures.py.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, SIZE, LINE = 600, 21, 27  # large print: a telephone shows a picture in 355 pixels, so its print in 12
BROADEST = 0.58  # a character of a text, as a part of its size; for a line that must fit its box
COLOURS = {  # kind: (on white, on black)
    "client": ("#00796b", "#4db6ac"),
    "server": ("#303f9f", "#9fa8da"),
    "dealer": ("#d84315", "#ffab91"),
    "helper": ("#7b1fa2", "#ce93d8"),
    "ink": ("#212121", "#eceff1"),
    "faint": ("#607d8b", "#90a4ae"),
    "grid": ("#cfd8dc", "#455a64"),
    "page": ("#ffffff", "#1e2129"),
}
Point = tuple[float, float]


@dataclass
class Drawing:
    title: str
    height: int
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start", bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}>{_safe(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, kind: str, *lines: str) -> float:
        """A party: its name, then what is written; a line that ends with a colon is a heading. Its lower end."""
        height = 20 + LINE * len(lines)
        self.parts.append(
            f'<rect class="{kind} line" x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="8" fill="none"/>'
        )
        for number, line in enumerate(lines):
            assert BROADEST * SIZE * len(line) <= width - 16, f"{self.title}: too long for its box: {line}"
            head, label = number == 0, line.endswith(":")
            kind_of_text = kind if head else "faint" if label else "ink"
            self.text(x + 12, y + 31 + LINE * number, line.rstrip(":") if head else line, kind_of_text, bold=head)
        return y + height

    def arrow(self, *points: Point, both: bool = False) -> None:
        ends = ' marker-end="url(#end)"' + (' marker-start="url(#end)"' if both else "")
        self.line(points, "faint", more=ends)

    def line(self, points: Sequence[Point], kind: str, width: float = 2, dashed: bool = False, more: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = ' stroke-dasharray="6 5"' if dashed else ""
        style = f'fill="none" stroke-width="{width:g}"{dashes}{more}'
        self.parts.append(f'<polyline class="{kind} line" points="{path}" {style}/>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str, faint: bool = False) -> None:
        opacity = ' fill-opacity="0.4"' if faint else ""
        self.parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}"{opacity}/>'
        )

    def dot(self, x: float, y: float, kind: str) -> None:
        self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')

    def svg(self) -> str:
        light, dark = ("".join(_rules(name, colours[n]) for name, colours in COLOURS.items()) for n in (0, 1))
        arrow = '<marker id="end" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" role="img" aria-labelledby="title" font-size="{SIZE}" '
            'font-family="system-ui, sans-serif">',
            f'<title id="title">{_safe(self.title)}</title>',
            f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>",
            f'<defs>{arrow}orient="auto-start-reverse"><path class="faint" d="M0 0 10 5 0 10z"/></marker></defs>',
            f'<rect class="page" width="{WIDTH}" height="{self.height}"/>',
            *self.parts,
            "</svg>\n",
        ])  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on the pixels from `start` to `end`; `log`: equal steps for equal factors."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def axes(drawing: Drawing, x: Scale, y: Scale, names: tuple[str, str], ticks: tuple[Sequence[float], Sequence[float]],
         units: tuple[str, str] = ("", "")) -> None:  # fmt: skip
    """Lines at the ticks of y, and what both axes measure: that of y above it, so that no text is turned."""
    for value in ticks[1]:
        drawing.line([(x.start, y(value)), (x.end, y(value))], "grid", 1)
        drawing.text(x.start - 8, y(value) + 5, f"{value:g}{units[1]}", "faint", "end")
    for value in ticks[0]:
        drawing.text(x(value), y.start + LINE, f"{value:g}{units[0]}", "faint", "middle")
    drawing.text((x.start + x.end) / 2, y.start + 2 * LINE, names[0], "ink", "middle")
    drawing.text(8, y.end - 22, names[1])


def _rules(name: str, colour: str) -> str:
    return f".{name}{{fill:{colour}}}.{name}.line{{stroke:{colour};fill:none}}"


def _safe(words: str) -> str:
    return html.escape(words, quote=False)
