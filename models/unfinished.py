"""What a compilation has measured so far, in a file: if it is ended before it is done, the next one goes on from there.

Only results of calibration are kept, which take most of the time: the plan, and the ranges of each program's values.
Graphs are made anew, and a program comes out the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..approximations import Plan
from ..files import whole_file
from .graph.graph import Node
from .graph.ranges import Range

UNFINISHED = ".unfinished.json"  # hidden: a folder with nothing else is free to compile into
J = TypeVar("J")  # what JSON holds


@dataclass(frozen=True)
class Unfinished:
    """`file`: of one model compiled in one way (cached.py); None keeps nothing. `name`: of a part of the work."""

    file: Path | None = None
    name: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Unfinished:
        """What is in a file; one that is missing or damaged holds nothing."""
        try:
            measured = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            measured = {}
        return cls(file, measured=measured if isinstance(measured, dict) else {})

    def part(self, name: str) -> Unfinished:
        return replace(self, name=f"{self.name}{name}: ")

    def plan(self, calibrate: Callable[[], Plan]) -> Plan:
        """The calibrated plan."""
        return Plan.from_json(self.value("plan", lambda: calibrate().to_json()))

    def ranges(self, nodes: list[Node], measure: Callable[[], dict[int, Range]]) -> dict[int, Range]:
        """Of these nodes, by id. Those of other nodes are not taken."""
        graph = hashlib.sha256(repr([(node.op, node.path, node.shape) for node in nodes]).encode()).hexdigest()
        places = {id(node): at for at, node in enumerate(nodes)}
        rows = self.value(f"ranges {graph}", lambda: [(places[key], *astuple(r)) for key, r in measure().items()])
        return {id(nodes[at]): Range(*row) for at, *row in rows}

    def value(self, what: str, make: Callable[[], J]) -> J:
        """What `make` gives, or gave before."""
        key = self.name + what
        if key not in self.measured:
            self.measured[key] = make()
            self._write()
        return self.measured[key]

    def remove(self) -> None:
        """When the work is done."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.file is None:
            return
        with suppress(OSError):  # then there is nothing to go on from, which is no reason to end here
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.file) as stream:
                stream.write(json.dumps(self.measured).encode())
