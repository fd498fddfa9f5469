"""Programs that share states: attention over the rows that earlier runs kept, and over a run's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .programs import Case, Data, Draft


@dataclass
class Attention:
    """Grouped: two heads of queries read one of keys and values. `room`: rows of a state; `features` of a head.
    `last`: of more rows than there is room for, the last are read."""

    data: Data
    room: int = 8
    features: int = 4
    width: int = 6
    last: bool = False
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = {name: self.data.ints(self.width, size * self.features, bits=8) for name, size in HEADS.items()}

    def run(self, x: Tensor, reveal_all: bool = True) -> Case:
        """The next run of the session, on rows [1, n, width]. Reveals every value, or the last."""
        d, drafted = Draft(), {}
        own = d.client(x)
        for name, heads in HEADS.items():
            y = d("linear", own, d.weight(self.weights[name]))
            split = d("reshape", y, sizes=[1, x.shape[1], heads, self.features])
            drafted[name] = d("permute", split, dims=[0, 2, 1, 3])
        keys, values = (self._all_rows(d, name, drafted[name]) for name in ("k", "v"))
        scores = d("matmul", drafted["q"], d("permute", keys, dims=[0, 1, 3, 2]))
        weights = d("polynomial", d("rescale", scores, bits=12), coefficients=[3, 2, 1])
        mixed = d("rescale", d("matmul", weights, values), bits=8)
        return d.case() if reveal_all else d.case(mixed)

    def _all_rows(self, d: Draft, name: str, x: int) -> int:
        """Those of earlier runs and of this one, for both heads of queries."""
        before = d.state(name, self._padded(name), **({"last": True} if self.last else {}))
        now = d("keep", x, name=name)
        self.kept[name] = torch.cat([*([self.kept[name]] if name in self.kept else []), d.values[now]], dim=-2)
        rows = d("concat", before, now, dim=2)
        return d("expand", rows, sizes=[1, HEADS["q"], *d.values[rows].shape[2:]])

    def _padded(self, name: str) -> Tensor:
        out = torch.zeros(1, HEADS[name], self.room, self.features, dtype=torch.int64)
        if name in self.kept:
            rows = self.kept[name][..., -self.room :, :] if self.last else self.kept[name][..., : self.room, :]
            out[..., : rows.shape[-2], :] = rows
        return out


HEADS = {"q": 2, "k": 1, "v": 1}


def session(
    rows: Iterable[int] = (4, 1, 1, 1), room: int = 8, width: int = 6, reveal_all: bool = True, last: bool = False
) -> list[Case]:
    """So many rows a run, in order. Runs of as many rows have one program, and here also one input."""
    data = Data(9)
    attention, x = Attention(data, room, width=width, last=last), {}
    return [attention.run(x.setdefault(n, data.ints(1, n, width, bits=8)), reveal_all) for n in rows]


def every_reader(rows: int, kept: Tensor | None = None) -> Case:
    """All that may read a state, or what is kept. `kept`: [6, 3], or nothing yet."""
    d, data = Draft(), Data(4)
    room = torch.zeros(8, 3, dtype=torch.int64)
    if kept is not None:
        room[: len(kept)] = kept
    x = d("mul_private", d.client(data.ints(rows, 3, bits=10)), d.weight(data.ints(rows, 3, bits=10)))
    for value in (d.state("s", room), d("keep", x, name="s")):
        turned = d("permute", value, dims=[1, 0])
        several = d("expand", d("reshape", turned, sizes=[1, 3, d.values[value].shape[0]]), sizes=[2, 3, -1])
        for read in (value, turned, several, d("slice", value, dim=0, start=1, stop=5, step=2)):
            d("mul", read, read)
            d("polynomial", read, coefficients=[1, 2, 3, 4])
            d("less", read, threshold=5, bits=30)
            d("rescale", read, bits=4)
            d("add", read, d.constant(7))
            d("linear", read, d.weight(data.words(d.values[read].shape[-1], 2)))
            d("mul_private", read, d.client(data.words(1)))
        d("matmul", value, turned)
        d("matmul", x, turned)
        d("concat", value, value, dim=0)
        d("concat", value, x, dim=0)
        d("index", value, dim=0, indices=[1, 0, 0])
    d("matmul", x, d("permute", x, dims=[1, 0]))
    return d.case()
