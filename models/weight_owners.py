"""Public weights: which parameters of a model every computing party may hold. The others stay with the server.

A product of a secret with a public weight is local: each party multiplies its share, and nothing is sent. Weights of an
open model need no protection, and those that were trained on top of it (an adapter, a head) may still be secret.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..protocols.errors import BlindformerError

PRIVATE, PUBLIC = "private", "public"
_SHOWN = 6  # names in a message


class WeightsError(BlindformerError):
    """A choice of public weights that does not fit the model."""


@dataclass(frozen=True)
class WeightOwners:
    """Patterns of parameters' names (`fnmatch`: * stands for any characters). A name that both match is private.

    rest      whose the parameters are that no pattern matches: private, public, or "": each has to match one
    inside    what precedes the names, where the model is part of another module
    derived   patterns of what that module computes from all parameters: open if all of them are
    """

    public: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    rest: str = PRIVATE
    inside: str = ""
    derived: tuple[str, ...] = ()

    def of(self, model: nn.Module) -> frozenset[str] | None:
        """The open parameters of a model, saved buffers among them; of one with several names, all have to be open.
        Errors: as `parameters`."""
        tensors = model.state_dict()
        opened = self.parameters(tensors)
        if opened is None:
            return None
        return opened - _also_called(tensors, tensors.keys() - opened)

    def check_released(self, model: nn.Module, released: Collection[str], added: Sequence[str] = ()) -> None:
        """Errors: WeightsError if clients would get what a pattern calls private, by this or by another name.
        `added`: more such patterns."""
        tensors = model.state_dict()
        for name in tensors:
            private = any(fnmatchcase(name.removeprefix(self.inside), p) for p in (*self.private, *added))
            if private and (given := _also_called(tensors, [name]) & set(released)):
                other = "" if name in given else f", as {min(given)},"
                raise WeightsError(
                    f"{name}: private, but clients would get it{other} with the embedding block; compile with "
                    "--embedding private"
                )

    def parameters(self, names: Iterable[str]) -> frozenset[str] | None:
        """The open ones of these parameters; None: the model has none, and is treated as it always was.

        Errors: WeightsError for a parameter that no pattern matches, and for a pattern that matches none.
        """
        if not (self.public or self.private) and self.rest == PRIVATE:
            return None
        owners: dict[str, str] = {}
        unused = dict.fromkeys((*self.public, *self.private))
        computed = []
        for name in names:
            if any(fnmatchcase(name, pattern) for pattern in self.derived):
                computed.append(name)
                continue
            matching = {}
            for kind, patterns in ((PUBLIC, self.public), (PRIVATE, self.private)):
                fitting = [p for p in patterns if fnmatchcase(name.removeprefix(self.inside), p)]
                matching[kind] = bool(fitting)
                for pattern in fitting:
                    unused.pop(pattern, None)
            owners[name] = next((kind for kind in (PRIVATE, PUBLIC) if matching[kind]), self.rest)
        if unused:
            raise WeightsError(
                f"weights: no parameter is called {next(iter(unused))!r}; the model has {_listed(owners, self.inside)}"
            )
        if left := [name for name, owner in owners.items() if not owner]:
            raise WeightsError(
                f"weights: no pattern matches {_listed(left, self.inside)}; add one, or name the owner of the "
                "rest (--weights private)"
            )
        if PRIVATE not in owners.values():
            owners |= dict.fromkeys(computed, PUBLIC)
        return frozenset(name for name, owner in owners.items() if owner == PUBLIC) or None

    def within(self, inside: str, derived: Sequence[str]) -> WeightOwners:
        """The same choice, where the model is part of another module."""
        return replace(self, inside=inside, derived=tuple(derived))


Weights = str | Mapping[str, str | Sequence[str]] | WeightOwners
"""`private`, `public`, or patterns by either: {"public": ["model.*"], "private": ["*lora*"], "rest": "private"}."""


def weight_owners(weights: Weights) -> WeightOwners:
    """Errors: WeightsError."""
    if isinstance(weights, WeightOwners):
        return weights
    if isinstance(weights, str):
        if weights not in (PRIVATE, PUBLIC):
            raise WeightsError(f"weights={weights!r}: choose private or public, or give patterns of names by either")
        return WeightOwners(rest=weights)
    rest = weights.get("rest", "")
    patterns = {kind: weights.get(kind, ()) for kind in (PUBLIC, PRIVATE)}
    if weights.keys() - {PRIVATE, PUBLIC, "rest"} or rest not in ("", PRIVATE, PUBLIC) or _is_text(patterns.values()):
        raise WeightsError('weights: give patterns by owner, such as {"public": ["model.*"], "rest": "private"}')
    return WeightOwners(tuple(patterns[PUBLIC]), tuple(patterns[PRIVATE]), str(rest))


def _also_called(tensors: Mapping[str, Tensor], names: Collection[str]) -> set[str]:
    """These names, and all others of the same tensors."""
    places = {tensors[name].data_ptr() for name in names if tensors[name].numel()}
    return {name for name, value in tensors.items() if name in names or value.data_ptr() in places}


def _is_text(patterns: Iterable[object]) -> bool:
    """One pattern where a list of them is wanted: its letters would be patterns."""
    return any(isinstance(item, str) for item in patterns)


def _listed(names: Iterable[str], inside: str) -> str:
    short = [name.removeprefix(inside) for name in names]
    more = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
    return f"{', '.join(short[:_SHOWN])}{more}"
