"""What a session keeps between its runs: rows under a name, which later runs read (operations `keep` and `state`).

Each party has one `KeptStates` a session and phase, and gives it to every engine of that session. What a row is there:

    clear     the row
    online    what is public of it, and this party's share of its mask
    offline   its mask: the dealer's value, a party's share; tensors without storage where correlations are counted

A run reads what earlier runs kept: all of it, or (`last`) the last rows that it has room for; rows so far back that no
run will read them are dropped. What it keeps itself is for those whose engines are made afterwards, so the order
of its own instructions does not matter. Offline and online phases are in the order of the runs, each by itself.

A state that is kept `whole` is one run's alone: what it keeps takes the place of what was there, and is not forgotten
with the rows of others. Such is what a decoder reads of the text or audio that an encoder has read. Those that are
prepared have numbers, since masks of one that was then never kept would fit another by their shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .devices import CPU
from .errors import BlindformerError

SPARE = 128  # rows held behind those that are read, so that runs may forget as many


class StateError(BlindformerError):
    """A state does not fit the run that reads it or adds to it."""


class KeptStates:
    """Rows [..., rows, d] by name, along dimension -2, from number `first` on: those before were dropped. `whole`: by
    name, too, what one run has kept.

    `device`: of rows that are not there yet. `reach`: the most rows that runs read that take the last ones; 0: none do.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self.held: dict[str, Tensor] = {}
        self.whole: dict[str, Tensor] = {}
        self.numbers: dict[str, int] = {}  # of what is kept whole
        self.first = self.reach = 0

    def rows(self, name: str) -> int:
        """How many were kept under this name and not forgotten."""
        return self.first + self.held[name].shape[-2] if name in self.held else 0

    @property
    def most(self) -> int:
        """The most rows kept under any name."""
        return max(map(self.rows, self.held), default=0)

    def truncate(self, rows: int) -> None:
        """Forget all but the first rows: new ones, with masks of their own, take the places of the others."""
        rows = min(rows, self.most)
        end, self.first = max(rows - self.first, 0), min(rows, self.first)
        out = max(rows - self.first - self.reach - SPARE, 0) if self.reach else 0
        self.held = {name: tensor[..., out:end, :] for name, tensor in self.held.items()}
        self.first += out

    def append(self, name: str, rows: Tensor) -> None:
        if name in self.held:
            _check_alike(name, self.held[name].shape, rows.shape)
            rows = torch.cat([self.held[name], rows], dim=-2)  # never in place: a run may hold what was there
        self.held[name] = rows


class RunStates:
    """The states as one run sees them."""

    def __init__(self, states: KeptStates) -> None:
        self.states, self.before, self.first = states, dict(states.held), states.first
        self.whole, self.numbers = dict(states.whole), dict(states.numbers)
        self.kept: set[str] = set()

    def rows(self, name: str) -> int:
        """How many rows were kept before the run."""
        if name in self.whole:
            return self.whole[name].shape[-2]
        return self.first + self.before[name].shape[-2] if name in self.before else 0

    def number(self, name: str) -> int:
        """Of what is kept whole, before the run; 0: nothing is."""
        return self.numbers.get(name, 0)

    def read(
        self, name: str, shape: tuple[int, ...], last: bool = False, end: bool = False, whole: bool = False
    ) -> Tensor:
        """The rows kept before the run, then zeros, in a new tensor of this shape. `last`: of more rows than it has
        room for, the last ones. `end`: the zeros come first. `whole`: what one run has kept. Errors: StateError."""
        padded = torch.zeros(shape, dtype=torch.int64, device=self.states.device)
        rows, start = self.rows(name), 0
        if last:
            start = max(rows - shape[-2], 0)
            self.states.reach = max(self.states.reach, shape[-2])
        elif rows > shape[-2]:
            raise StateError(
                f"state {name}: {rows} rows exceed the program's {shape[-2]}; start a new session, or compile for more"
            )
        if whole:
            if rows:
                padded[..., :rows, :] = self.whole[name]
            return padded
        if start < self.first:
            raise StateError(f"state {name}: rows before {self.first} were dropped; start a new session")
        if rows:
            _check_alike(name, self.before[name].shape, shape)
            place = shape[-2] - rows if end else 0
            padded[..., place : place + rows - start, :] = self.before[name][..., start - self.first :, :]
        return padded

    def keep(self, name: str, *rows: Tensor, whole: bool = False, number: int = 0) -> None:
        """Append rows, for later runs; of several runs at once, those of each. `whole`: they take the place of those
        kept before, and have the `number` that they were prepared with, else the next. Errors: StateError."""
        if name in self.kept:
            raise StateError(f"state {name}: is added to twice in one program; compile the model again")
        self.kept.add(name)
        if whole:
            (self.states.whole[name],) = rows
            self.states.numbers[name] = number or self.number(name) + 1
            return
        for each in rows:
            self.states.append(name, each)

    def extend(self, name: str, rows: Tensor) -> None:
        """For what is read alone: rows of a run before, of several at once."""
        self.before[name] = torch.cat([self.before[name], rows], dim=-2) if name in self.before else rows


def _check_alike(name: str, shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    if (*shape[:-2], shape[-1]) != (*other[:-2], other[-1]):
        raise StateError(f"state {name}: its rows are of another shape in this program; compile both together")
