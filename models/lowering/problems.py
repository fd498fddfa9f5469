"""All that keeps a model from being lowered, said in one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...protocols.errors import BlindformerError

MOST = 8  # problems that a line names


class LoweringError(BlindformerError):
    """The model contains an operation without a rule, or cannot be made private with these options."""


@dataclass
class Problems:
    """What was met on the way, by what it is: modules in order, and what to do about it."""

    modules: dict[str, list[str]] = field(default_factory=dict)
    advice: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, what: str, advice: str = "") -> None:
        places = self.modules.setdefault(what, [])
        if path not in places:
            places.append(path)
        self.advice[what] = advice

    def check(self) -> None:
        """Raise LoweringError if there are any."""
        if not self.modules:
            return
        sentences = [_said(what, places) for what, places in self.modules.items()]
        if len(sentences) > MOST:
            sentences[MOST:] = [f"{len(sentences) - MOST} more"]
        advice = dict.fromkeys(text for text in self.advice.values() if text)
        raise LoweringError("; ".join(["; also ".join(sentences), *advice]))


def _said(what: str, places: list[str]) -> str:
    others = f" (and in {len(places) - 1} other modules)" if len(places) > 1 else ""
    return f"{places[0] or 'model'}: {what}{others}"
