"""How many of a client's lies audits find, on a small Transformer in threads of one process.

    python -m bench.lies --count 10000 --format json

One lie a session: a client that follows the protocol but for one change of one message of one run. README.md says what
each figure means.
"""

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from blindformer.approximations import Plan
from blindformer.models.compile import CalibrationWarning, Compiled, compile
from blindformer.models.program.two_server import for_audits
from blindformer.parties.client.threads import ThreadParties
from blindformer.parties.session.audits import Draw, is_drawn
from blindformer.protocols.channel import Buffer
from blindformer.protocols.errors import PeerDeviated
from blindformer.protocols.streams import new_seed
from rich.table import Table
from torch import Tensor
from transformers import BertConfig, BertModel

from .harness import PLANS, Report, Say, carry_out, grid, parser

LENGTH, CALIBRATION, SIGMAS = 6, 8, 5.0
OUTPUT = "pooler_output"
Change = Callable[[bytearray, bytearray, random.Random], None]  # of a frame, with the same one of the run before


def _added(frame: bytearray, before: bytearray, chance: random.Random) -> None:
    frame[chance.randrange(len(frame))] ^= chance.randrange(1, 256)


def _flipped(frame: bytearray, before: bytearray, chance: random.Random) -> None:
    frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)


def _replayed(frame: bytearray, before: bytearray, chance: random.Random) -> None:
    frame[:] = before


def _dropped(frame: bytearray, before: bytearray, chance: random.Random) -> None:
    frame[:] = bytes(len(frame))


def _swapped(frame: bytearray, before: bytearray, chance: random.Random) -> None:
    half = len(frame) // 2
    frame[:half], frame[-half:] = frame[-half:], frame[:half]


CHANGES: dict[str, Change] = {
    "added": _added,
    "flipped": _flipped,
    "replayed": _replayed,
    "dropped": _dropped,
    "swapped": _swapped,
}
OTHERS = ("weights", "masks")  # the client's masked weights are changed; its masks are of another key
KINDS = (*CHANGES, *OTHERS)


class LyingFrames:
    """The client's channel to the server: notes the frames of the last run, and changes one of the next."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.frames, self.before = list[bytearray](), list[bytearray]()
        self.lie: tuple[int, Callable[[bytearray, bytearray], None]] | None = None
        self.changed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def begin(self) -> None:
        self.before, self.frames, self.changed = self.frames, [], False

    def send(self, data: Buffer) -> None:
        self._channel.send(self._given(data))

    def exchange(self, data: Buffer, size: int) -> bytearray:
        return self._channel.exchange(self._given(data), size)

    def _given(self, data: Buffer) -> bytearray:
        frame, number = bytearray(data), len(self.frames)
        self.frames.append(bytearray(frame))
        if self.lie is not None and number == self.lie[0] and number < len(self.before):
            self.lie[1](frame, self.before[number])
            self.changed = frame != self.frames[-1]
        return frame


def transformer() -> tuple[BertModel, list[dict[str, Tensor]]]:
    """Of two layers with seeded weights, and texts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=50,
            max_position_embeddings=LENGTH,
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            intermediate_size=32,
        )
        model = BertModel(config).eval()
        texts = [
            {"input_ids": torch.randint(50, (1, LENGTH)), "attention_mask": torch.ones(1, LENGTH, dtype=torch.long)}
            for _ in range(CALIBRATION)
        ]
    return model, texts


def small(plan: str, rate: float) -> tuple[Compiled, Mapping[str, Tensor]]:
    """The Transformer, compiled, and a text, encoded."""
    model, texts = transformer()
    with catch_warnings():
        simplefilter("ignore", CalibrationWarning)  # of what answers mean: nobody reads these
        compiled = compile(model, texts, Plan.preset(plan), outputs=[OUTPUT], name="small")
    return replace(compiled, program=for_audits(compiled.program, rate)), compiled.encode_inputs(texts[0])


@contextmanager
def session(compiled: Compiled, draw: Draw) -> Iterator[tuple[ThreadParties, LyingFrames]]:
    parties = ThreadParties(compiled, draw=draw)
    frames = LyingFrames(parties.client.server)
    parties.client.server = frames  # type: ignore[assignment]  # it adds nothing to a channel
    try:
        yield parties, frames
    finally:
        parties.close()


def ask(parties: ThreadParties, sources: Mapping[str, Tensor]) -> int:
    """One query, whose answer nobody decodes; how many audits came before it."""
    with parties.working():
        return parties.client.query(sources).timings.audits


def after_one(*then: bool, draw: Draw = lambda rate: False) -> Draw:
    """The first run is for an answer, the next ones as given, and all others as drawn."""
    first = iter((False, *then))

    def drawn(rate: float) -> bool:
        following = next(first, None)
        return draw(rate) if following is None else following

    return drawn


def lie(model: tuple[Compiled, Mapping[str, Tensor]], kind: str, chance: random.Random, draw: Draw) -> str:
    """One session with an honest query, and one whose first run has a lie: "found", "answered", or "no lie" where the
    change changes nothing. Errors: those of a session that ends for another reason."""
    compiled, text = model
    with session(compiled, draw) as (parties, frames):
        frames.begin()
        ask(parties, text)
        client, honest = parties.client, len(frames.frames)
        frames.begin()
        if kind in CHANGES:  # frame 0 has the values, which are the client's to choose
            frames.lie = chance.randrange(1, honest), lambda frame, before: CHANGES[kind](frame, before, chance)
        elif kind == "weights":
            name = chance.choice(sorted(client.weights.masked))
            changed = client.weights.masked[name].clone()
            changed.view(-1)[chance.randrange(changed.numel())] += 1 << chance.randrange(30)
            client.weights.masked = {**client.weights.masked, name: changed}
        else:
            client.seed = new_seed()
        try:
            ask(parties, text)
        except PeerDeviated:
            return "found"
        return "answered" if frames.changed or kind in OTHERS else "no lie"


def honest(model: tuple[Compiled, Mapping[str, Tensor]], count: int, say: Say) -> int:
    """How many of so many honest runs end in an accusation. Every other run is an audit."""
    compiled, text = model
    accused, left, kinds = 0, count, cycle((True, False))
    while left > 0:
        with session(compiled, lambda rate: next(kinds)) as (parties, _):
            try:
                while left > 0:
                    say(f"honest runs: {count - left}/{count}")
                    left -= 1 + ask(parties, text)
            except PeerDeviated:
                accused, left = accused + 1, left - 1
    return accused


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Lies in audits, lies in runs that are drawn, and honest runs."""
    chance, started = random.Random(chosen.seed), time.perf_counter()
    models = {plan: small(plan, chosen.rate) for plan in PLANS}
    in_audits: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for number in range(chosen.count):
        say(f"lies in audits: {number}/{chosen.count}")
        kind, plan = KINDS[number % len(KINDS)], chance.choice(PLANS)
        in_audits[kind][lie(models[plan], kind, chance, after_one(True))] += 1
    at_rate: Counter[str] = Counter()
    for number in range(chosen.drawn):
        say(f"lies in drawn runs: {number}/{chosen.drawn}")
        at_rate[lie(models["fast"], "added", chance, after_one(draw=is_drawn))] += 1
    each = math.ceil(chosen.honest / len(PLANS))
    accused = sum(honest(models[plan], each, say) for plan in PLANS)
    lied = at_rate["found"] + at_rate["answered"]
    return {
        "rate": chosen.rate,
        "lies": sum(count["found"] + count["answered"] for count in in_audits.values()),
        "found": sum(count["found"] for count in in_audits.values()),
        "by_kind": {kind: dict(count) for kind, count in in_audits.items()},
        "drawn": lied,
        "drawn_found": at_rate["found"],
        "deviations": abs(at_rate["found"] - chosen.rate * lied)
        / max(1e-9, math.sqrt(lied * chosen.rate * (1 - chosen.rate))),
        "honest": each * len(PLANS),
        "accused": accused,
        "seconds": time.perf_counter() - started,
    }


def broken(report: Report) -> str:
    """Which claim does not hold."""
    if report["found"] < report["lies"]:
        return f"{report['lies'] - report['found']} of {report['lies']} lies in audits were not found"
    if report["accused"]:
        return f"{report['accused']} of {report['honest']} honest runs were accused"
    if report["deviations"] > SIGMAS:
        return f"{report['drawn_found']} of {report['drawn']} lies were found, at a rate of {report['rate']:g}"
    return ""


def show(report: Report) -> list[Table | str]:
    kinds = ", ".join(f"{kind} {count.get('found', 0)}" for kind, count in report["by_kind"].items())
    rows = {
        "lies in audits": f"{report['found']} of {report['lies']} found: {kinds}",
        "lies in drawn runs": f"{report['drawn_found']} of {report['drawn']} found, rate {report['rate']:g}: "
        f"{report['deviations']:.1f} standard deviations off",
        "honest runs": f"{report['accused']} of {report['honest']} accused, half of them audits",
    }
    return [grid("Audits of a client: a Transformer of two layers, plans fast and faithful", rows)]


def main(arguments: list[str] | None = None) -> int:
    options = parser("lies", "Count the lies of clients that audits find.")
    options.add_argument("--count", type=int, default=350, help="lies in audits (default %(default)s)")
    options.add_argument("--drawn", type=int, default=200, help="lies in drawn runs (default %(default)s)")
    options.add_argument("--honest", type=int, default=200, help="honest runs (default %(default)s)")
    options.add_argument("--rate", type=float, default=0.25, help="of audits (default %(default)s)")
    options.add_argument("--seed", type=int, default=0)
    return carry_out(options, arguments, measure, show, broken=broken)


if __name__ == "__main__":
    raise SystemExit(main())
