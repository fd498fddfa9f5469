"""Lives of clients, for the fault campaign to break off: what each does from its handshake to its goodbye."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from blindformer.models.generation.conversation import Conversation
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.parties.client.client import open_here
from blindformer.parties.client.local import find_local
from blindformer.tests.shared.clients import Asker
from blindformer.tests.shared.site import QUESTIONS, compile_into, conversation_with
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama
from safetensors.torch import load_file, save_file

from .ledgers import watched_store

AHEAD = 2  # preprocessed correlations in each life, and used in its second session
SAID = ("Hi", "Ho")
TOKENS = 12  # of each answer: correlations are made for 8 at a time
PAUSE = 0.05  # seconds between two tokens, once in a conversation
BACK = 60.0  # seconds that a conversation waits for a service that was killed


class Work(Protocol):
    def __call__(self, asker: Asker, pipe: Connection, *, store: Path) -> None: ...


@dataclass(frozen=True)
class Life:
    """`parts`, in their order; in those from `dealt[0]` to `dealt[1]` there is a dealer's session.

    compile   writes a model and its questions into a folder
    live      the whole life
    afterwards  the next client after a fault
    goes_on   from this part on the client comes to its end whoever else is killed; "": it may fail, by a typed error
    """

    parts: tuple[str, ...]
    dealt: tuple[str, str]
    compile: Callable[[Path], None]
    live: Work
    afterwards: Work
    goes_on: str = ""

    def must_end(self, part: str) -> bool:
        return bool(self.goes_on) and self.parts.index(part) >= self.parts.index(self.goes_on)


def ask_queries(asker: Asker, pipe: Connection, *, store: Path) -> None:
    """One session with live queries and correlations ahead, another one that uses these."""

    def part(name: str) -> None:
        asker.say("part", name=name)

    def ask(party: Any, more: bool = False, progress: Any = None) -> None:
        asker.say("asked")
        asker.say("answered", right=asker.ask(party, progress, more))

    watched, online = watched_store(store), []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "online" and not online:
            online.append(True)
            part("online")

    part("handshake")
    with asker.connect(store=watched, use_store="off") as party:
        part("set-up")
        party.set_up()
        part("offline")
        ask(party, progress=progress)
        part("pipeline")
        ask(party, more=True)
        ask(party)
        part("precompute")
        party.precompute(AHEAD)
        part("handshake again")
    with asker.connect(store=watched) as party:
        part("set-up again")
        party.set_up()
        part("stored")
        for number in range(AHEAD):
            ask(party, more=number + 1 < AHEAD)
        part("goodbye")


def ask_afterwards(asker: Asker, pipe: Connection, *, store: Path) -> None:
    """One query from the store if it holds any, one that is live."""
    for use_store in ("auto", "off"):
        with asker.connect(store=watched_store(store), use_store=use_store) as party:
            party.set_up()
            asker.say("asked")
            asker.say("answered", right=asker.ask(party))


def compile_conversation(folder: Path) -> None:
    """A tiny decoder, and what it answers on `clear`."""
    compile_chat_folder(tiny_llama(folder.with_name("model"), TEMPLATE), folder, slots=64, sizes=(1, 8))
    with open_here(find_local("clear"), folder) as client:
        conversation = client.conversation()
        answers = [conversation.say(text, max_new_tokens=TOKENS).tokens for text in SAID]
    save_file({"answers": torch.tensor(answers)}, folder / QUESTIONS)


def converse_on(asker: Asker, pipe: Connection, *, store: Path) -> None:
    """Two messages and their answers, in sessions that the client opens as it needs them."""
    begun: list[str] = []

    def part(name: str) -> None:
        if name not in begun:  # they come again in another session
            begun.append(name)
            asker.say("part", name=name)

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "set-up":
            part("set-up")

    def on_pass(name: str, answer: Any) -> None:
        if "text" in begun and "token" not in begun:
            part("between tokens")
            time.sleep(PAUSE)
            part("token")

    part("handshake")
    with _talking(asker, store, on_pass, progress) as talk:
        for number, name in enumerate(("text", "second text")):
            part(name)
            _say(asker, talk, number)
        part("goodbye")


def converse_afterwards(asker: Asker, pipe: Connection, *, store: Path) -> None:
    """One message and its answer."""
    with _talking(asker, store) as talk:
        _say(asker, talk, 0)


def _talking(
    asker: Asker, store: Path, on_pass: Any = None, progress: Any = None
) -> AbstractContextManager[Conversation]:
    site, watched = asker.site, watched_store(store)
    where = (site.compiled, site.server, site.dealer, site.certificates, site.timeout)
    return conversation_with(*where, on_pass, wait=BACK, store=watched, progress=progress)


def _say(asker: Asker, talk: Conversation, number: int) -> None:
    asker.say("asked")
    tokens = talk.say(SAID[number], max_new_tokens=TOKENS).tokens
    asker.say("answered", right=tokens == load_file(asker.site.questions)["answers"][number].tolist())


LIVES = {
    "queries": Life(
        (
            *("handshake", "set-up", "offline", "online", "pipeline", "precompute"),
            *("handshake again", "set-up again", "stored", "goodbye"),
        ),
        ("offline", "precompute"),
        compile_into,
        ask_queries,
        ask_afterwards,
    ),
    "conversations": Life(
        ("handshake", "set-up", "text", "between tokens", "token", "second text", "goodbye"),
        ("text", "second text"),
        compile_conversation,
        converse_on,
        converse_afterwards,
        goes_on="text",
    ),
}
