"""A hostile peer in our own process: whatever it sends, each party ends with a typed error or goes on, and soon.

Mutated conversations of every connection there is: frames, handshakes, sizes, JSON. Ten thousand with `make fuzz`, a
fifth of them in every other run. What only a real service can show (memory, other sessions, floods) is in
test_hostile_service.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from blindformer.parties.service.control import REPORTS as REPORT_KINDS
from blindformer.parties.service.control import BrokenControl, Lines, parse_report
from blindformer.parties.session.dealing import DealerParty
from blindformer.parties.session.messages import LimitReached, SlotsBusy
from blindformer.parties.session.preprocessing_store import StoreError
from blindformer.parties.transport.frames import MESSAGE, TENSOR, pack_header
from blindformer.protocols.errors import PeerError
from blindformer.tests.parties.hostile import (
    NASTY,
    TEXTS,
    TIMEOUT,
    Stage,
    Target,
    attacks,
    channel,
    chatter,
    filled,
    message,
)
from blindformer.tests.parties.session.site import small_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STAGE = Stage(small_case())
EXAMPLES = {
    "server, by its client": 3000,
    "server, by its dealer": 1500,
    "client, by its server": 2000,
    "dealer, by a server": 1500,
    "dealer, by a client": 1000,
    "probe, by anyone": 500,
}
SAYINGS = 150  # to each
STORED = 150  # of each: every one begins a ledger
PROGRAMS, REPORTS = 500, 1000
DRAWN = 5 if settings().derandomize else 1  # one of so many; `make fuzz` draws all, and new ones
FIELDS = sorted({name for report in REPORT_KINDS.values() for name in report.model_fields})
quiet: dict[str, Any] = {"suppress_health_check": list(HealthCheck)}
by_name: dict[str, Any] = {"ids": lambda target: target.name}


def test_fuzzing_draws_ten_thousand_and_more() -> None:
    assert {target.name for target in STAGE.targets} == set(EXAMPLES)
    assert sum(EXAMPLES.values()) + PROGRAMS + REPORTS >= 10_000


@pytest.mark.parametrize("target", STAGE.targets, **by_name)
def test_an_honest_conversation_goes_to_its_end(target: Target) -> None:
    with filled(b"".join(target.frames)) as sock:
        target.meet(sock)


@pytest.mark.hypothesis
@pytest.mark.parametrize("target", STAGE.targets, **by_name)
def test_a_peer_that_says_anything_gets_a_typed_error_or_nothing(target: Target) -> None:
    attack(target, SAYINGS, chatter(target.frames))


@pytest.mark.hypothesis  # which make fuzz runs; what these draw is drawn inside of them
@pytest.mark.slow
@pytest.mark.parametrize("target", STAGE.targets, **by_name)
def test_a_hostile_peer_gets_a_typed_error_or_nothing(target: Target) -> None:
    before = psutil.Process().memory_info().rss
    refused = attack(target, EXAMPLES[target.name], changed(target, STAGE))
    assert refused > EXAMPLES[target.name] // DRAWN // 4
    assert psutil.Process().memory_info().rss - before < 100e6, "it kept, or hypothesis kept, what it was sent"


@pytest.mark.hypothesis
@pytest.mark.slow
def test_a_hostile_peer_of_a_party_with_a_store() -> None:
    memory = Path("/dev/shm")  # ledgers wait for the disk, and here are hundreds
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        stage = Stage(small_case(), Path(name))
        for target in stage.targets:
            with filled(b"".join(target.frames)) as sock:
                target.meet(sock)
            assert attack(target, STORED, changed(target, stage)) > STORED // DRAWN // 4


def changed(target: Target, stage: Stage) -> st.SearchStrategy[bytes]:
    others = [frame for target in stage.targets for frame in target.frames if frame[0] == MESSAGE]
    return attacks(target.frames, others)


def attack(target: Target, examples: int, conversations: st.SearchStrategy[bytes]) -> int:
    """How many of the attacks ended with an error, of one in `DRAWN` of so many."""
    refused = 0

    @settings(max_examples=examples // DRAWN, **quiet)
    @given(conversations)
    def run(content: bytes) -> None:
        nonlocal refused
        began = time.monotonic()
        with filled(content) as sock:
            what = outcome(lambda: target.meet(sock))
        refused += bool(what)
        assert time.monotonic() - began < TIMEOUT, "it waited for a peer that was gone"

    run()
    return refused


@settings(max_examples=PROGRAMS // DRAWN, **quiet)
@given(st.data())
def test_a_program_that_no_compiler_makes_is_turned_down(data: st.DataObject) -> None:
    """A server names the hash of what it sends, so the dealer reads it: and neither fails nor swells."""
    text = json.dumps(damaged(data, json.loads(STAGE.program.to_json())))
    hello = STAGE.mine("server").model_copy(update={"program": hashlib.sha256(text.encode()).hexdigest()})
    frames = [
        message({"seed": "0" * 32}),
        message({"program": len(text)}),
        pack_header(TENSOR, len(text)) + text.encode(),
        *STAGE.heard("dealer from server")[4:],
    ]
    with filled(b"".join(frames)) as sock:
        outcome(DealerParty(channel(sock, "server"), hello.program, lambda: [bytes(32)]).serve)


@settings(max_examples=REPORTS // DRAWN, **quiet)
@given(st.data())
def test_a_child_that_was_taken_over_cannot_break_its_supervisor(data: st.DataObject) -> None:
    """Its reports are read like a stranger's (parties/service/control.py)."""
    name = data.draw(st.sampled_from([*REPORT_KINDS, "other"]))
    body = {key: data.draw(st.sampled_from(NASTY)) for key in data.draw(st.sets(st.sampled_from(FIELDS), max_size=6))}
    line = data.draw(st.just(json.dumps({name: body}).encode()) | st.binary(max_size=200) | st.sampled_from(TEXTS))
    with contextlib.suppress(BrokenControl):
        for whole in Lines().feed(line + b"\n"):
            parse_report(whole)


def outcome(conversation: Callable[[], None]) -> str:
    """The typed error that ends it, one printable line; empty if it goes to its end. Anything else fails the test."""
    try:
        conversation()
    except (PeerError, SlotsBusy, LimitReached, StoreError) as error:
        text = str(error)
    else:
        return ""
    assert text.isprintable()
    assert len(text) < 2000
    return text


def damaged(data: st.DataObject, program: dict[str, Any]) -> Any:
    """One value anywhere in a program, in its place another one."""
    at: Any = program
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        key = data.draw(st.sampled_from(keys))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 5)) == 0:
            at[key] = data.draw(st.sampled_from([*NASTY, 10**6, 2**40, [2**31] * 3, ["client"], "linear", "reveal"]))
            return program
        at = inner
