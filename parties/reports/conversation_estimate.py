"""What a conversation with a language model will cost, before anybody has one: each pass, a prompt, a token.

Bytes and rounds are exact. Seconds are those of passes one after the other, each priced as a query (estimate.py): both
sides make the correlations of the next pass while one is run, which takes off what the machine has cores for. So a
conversation takes at most these seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.generation.parts import size_of
from ...models.generation.rows import Rows, behind, room
from ...models.program.pricing import Network
from ...models.program.program import Program
from ...protocols.errors import BlindformerError
from ..session.passes import part_run
from ..session.rehearsal import rehearse
from ..transport.shaping import Link
from .estimate import Estimate, estimate
from .report import declared

MINUTE = 60.0


@dataclass
class TokensEstimate:
    """What so many tokens cost, in the passes `parts`, behind `behind` others at most."""

    tokens: int
    behind: int
    parts: list[str]
    rounds: int
    online_bytes: int
    offline_bytes: int
    online_s: float
    offline_s: float

    @property
    def seconds(self) -> float:
        return self.online_s + self.offline_s

    @property
    def tokens_per_minute(self) -> float:
        return MINUTE * self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "tokens_per_minute": self.tokens_per_minute}


@dataclass
class ConversationEstimate:
    """`slots`: tokens that a conversation may have. `passes`: each by itself, with its price by layer in `by_part`.
    `prompt`: to read one at the beginning. `setup_bytes`: masked weights, once."""

    network: str
    rtt_s: float
    bandwidth: float
    slots: int
    setup_bytes: int
    setup_s: float
    passes: list[TokensEstimate]
    prompt: TokensEstimate
    by_part: dict[str, Estimate]

    @property
    def answer(self) -> list[TokensEstimate]:
        """A token of the answer, by how many others it comes behind."""
        return [one for one in self.passes if one.tokens == min(each.tokens for each in self.passes)]

    def to_dict(self) -> dict[str, Any]:
        passes, answer = ([one.to_dict() for one in estimates] for estimates in (self.passes, self.answer))
        by_part = {name: priced.to_dict() for name, priced in self.by_part.items()}
        prompt = self.prompt.to_dict()
        return {**vars(self), "passes": passes, "prompt": prompt, "answer": answer, "by_part": by_part}


def estimate_conversation(
    program: Program,
    network: str | Network = "lan",
    *,
    prompt: int = 32,
    weights: Mapping[str, Tensor] | None = None,
    stage: Callable[[str], None] | None = None,
) -> ConversationEstimate:
    """The price of a conversation with a model that is compiled for one.

    program    of several parts, as `compile_chat` makes it
    network    loopback, lan, wan, or one of your own
    prompt     tokens of a prompt to price
    weights    the program's, if at hand; they are only shapes here
    stage      told of each pass before it is rehearsed

    Errors: BlindformerError for another program or network, GenerationError for a prompt that does not fit.
    """
    if not program.parts:
        raise BlindformerError(f"{program.model}: answers whole texts; compile the model with --chat")
    read = parts_of_reading(program, prompt)
    priced: dict[str, Estimate] = {}
    for name, part in sorted(program.parts.items(), key=lambda found: (size_of(found[0]), room(found[1]))):
        if stage:
            stage(f"{size_of(name)} tokens at a time, behind {behind(program, name)} at most")
        runs = part_run(program, name, 0).runs
        priced[name] = estimate(part, network, rehearsal=rehearse(part, weights, runs=runs))
    any_part = next(iter(priced.values()))
    near = Network(any_part.network, any_part.rtt_s, any_part.bandwidth)
    setup_bytes = declared(program)["setup_bytes"]
    most = {name: behind(program, name) for name in priced}
    return ConversationEstimate(
        network=near.name,
        rtt_s=near.rtt,
        bandwidth=near.bandwidth,
        slots=room(program),
        setup_bytes=setup_bytes,
        setup_s=Link(near).arrival(0.0, setup_bytes),
        passes=[_sum(size_of(name), most[name], [name], priced) for name in priced],
        prompt=_sum(prompt, 0, read, priced),
        by_part=priced,
    )


def parts_of_reading(program: Program, tokens: int) -> list[str]:
    """The parts that a conversation runs to read its first tokens, in order. Errors: GenerationError."""
    parts: list[str] = []

    def run(name: str, *given: Any) -> Mapping[str, Tensor]:
        parts.append(name)
        return {"hidden": torch.zeros(1, size_of(name), 1)}

    Rows(program, run, []).read([0] * tokens)
    return parts


def _sum(tokens: int, behind: int, parts: list[str], priced: Mapping[str, Estimate]) -> TokensEstimate:
    names = ("rounds", "online_bytes", "offline_bytes", "online_s", "offline_s")
    sums = {name: sum(getattr(priced[part], name) for part in parts) for name in names}
    return TokensEstimate(tokens, behind, parts, **sums)
