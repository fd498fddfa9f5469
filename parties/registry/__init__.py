"""Which protocols parties run, and how. Protocols are discovered: each is a file of this folder that defines ENTRY.

Configuration, command line and Python ask here; nothing else knows a protocol by its name. An entry names its code as
"module:name", relative to `parties`, and the code is imported when it is used.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from ...errors import BlindformerError

PARTIES = __name__.rpartition(".")[0]
DEFAULT = "beaver"
PUBLIC, PRIVATE_HEAD = "public", "private-head"
Named = str | Callable[..., Any]
"""A name that `resolve` takes, or the object itself."""


@dataclass(frozen=True)
class ServiceSpec:
    """How long-lived services answer clients.

    client, service   classes
    words             what is asked, in help
    checks            what it adds to the doctor's checks (doctor.checks.ProtocolChecks); by default those of sessions
    helpers           roles that a server needs beside it
    holds             roles beside the server's that hold a part of a compiled folder
    storing           of one with a dealer: how its clients have correlations made ahead (client.precompute)
    """

    client: str
    service: str
    words: str
    checks: str = ".doctor.checks:SESSIONS"
    helpers: tuple[str, ...] = ()
    holds: Sequence[str] = ()
    storing: Named = ""


@dataclass(frozen=True)
class ProtocolEntry:
    """One protocol.

    words    in help, after its name: what it is for
    who      who takes part, in words
    parties  how many, if that is not for the user to say
    start    how a deployment of it is started, in a few words; empty: it has none
    served   by services; None: it is not
    dealer   the class of its dealer's service; empty: it has none
    local    a class of sessions with parties of this machine (client.session.Session); empty: there are none. Where the
             number of parties is for the user to say, it takes `parties`, too
    check    raises BlindformerError where a library is missing
    price    (compiled, network, parties): a dataclass of what a query costs; empty: it is not priced
    talks    sessions keep state between queries, so that a language model answers token by token
    public   the protocol that takes its place for models without any private parameter; empty: it takes these itself
    compiled whether a folder is compiled for it alone; empty: compiled folders are for several protocols
    as_it_is  its sessions run a model as it is, which others have to have compiled
    private  the class of what `make_private` returns
    head     makes of a module the same whose private last part alone runs on it; None where it has none. Empty: no
             module is taken apart
    receipts  its parties sign what a session was
    devices  its parties may compute on a GPU: sessions of this machine take `device`
    reference  runs in this process and hides nothing: what the others are compared with
    """

    name: str
    words: str
    who: str = "{parties} parties and an offline dealer, semi-honest, 128 bits"
    parties: int | None = None
    start: str = ""
    served: ServiceSpec | None = None
    dealer: Named = ""
    local: Named = ""
    check: Named = ""
    price: str = ""
    talks: bool = False
    public: str = ""
    compiled: Named = ""
    as_it_is: bool = False
    private: Named = ".client.private:PrivateModel"
    head: Named = ""
    receipts: bool = False
    devices: bool = False
    reference: bool = False


@cache
def protocols() -> dict[str, ProtocolEntry]:
    """All entries by name, in alphabetical order."""
    entries = (import_module(f"{__name__}.{module.name}").ENTRY for module in pkgutil.iter_modules(__path__))
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}


def names(wanted: Callable[[ProtocolEntry], object] = lambda entry: True) -> tuple[str, ...]:
    return tuple(name for name, entry in protocols().items() if wanted(entry))


def served() -> tuple[str, ...]:
    """Protocols of long-lived services."""
    return names(lambda entry: entry.served)


def served_with(helper: str) -> tuple[str, ...]:
    """Protocols whose server needs this role beside it."""
    return names(lambda entry: entry.served and helper in entry.served.helpers)


def talking() -> tuple[str, ...]:
    """Protocols that a language model answers token by token in."""
    return names(lambda entry: entry.talks)


def deployed() -> tuple[str, ...]:
    """Protocols that a configuration may name."""
    return names(lambda entry: entry.start)


def dealt() -> tuple[str, ...]:
    """Protocols that have a dealer's service."""
    return names(lambda entry: entry.dealer)


def of_parties() -> tuple[str, ...]:
    """Protocols whose deployment is N parties, each of which takes part in one session."""
    return names(lambda entry: entry.start and not entry.served)


def priced() -> tuple[str, ...]:
    return names(lambda entry: entry.price)


def sessions() -> tuple[str, ...]:
    """Protocols that run a private session on this machine."""
    return names(lambda entry: entry.local and not entry.reference)


def runs_here() -> tuple[str, ...]:
    """Protocols that `run` offers."""
    return names(lambda entry: entry.local)


def in_words(wanted: tuple[str, ...], words: Callable[[ProtocolEntry], str] = lambda entry: entry.words) -> str:
    """Help on a choice: "beaver: two parties; crypten: N parties". A protocol without words explains itself."""
    return "; ".join(f"{name}: {text}" for name in wanted if (text := words(protocols()[name])))


def reference() -> str:
    """The protocol that hides nothing."""
    return names(lambda entry: entry.reference)[0]


def compiled_for(folder: object) -> str | None:
    """The protocol that a compiled folder is for, where it is for one alone."""
    return next(iter(names(lambda entry: entry.compiled and resolve(entry.compiled)(folder))), None)


def find(name: str) -> ProtocolEntry:
    """Errors: BlindformerError, naming what there is."""
    return _one_of(names(), name, "is not known")


def find_served(name: str) -> ServiceSpec:
    """Errors: BlindformerError, naming what there is."""
    spec = _one_of(served(), name, "is not served").served
    assert spec is not None
    return spec


def find_talking(name: str) -> ProtocolEntry:
    """Errors: BlindformerError, naming what there is."""
    return _one_of(talking(), name, "keeps no state between queries")


def resolve(named: Named) -> Any:
    """The object that "module:name" names, or the module. An object is returned as it is."""
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    imported = import_module(module, PARTIES)
    return getattr(imported, name) if name else imported


def client_of(protocol: str) -> Any:
    """The class of its clients. Errors: BlindformerError."""
    return resolve(find_served(protocol).client)


def open_client(protocol: str, server: str | None, hints: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The protocol's client. Options that are None were not given; `hints` are left out where a protocol has no use
    for them.

    Errors: BlindformerError for an option that this protocol has no use for, and those of the client.
    """
    client = client_of(protocol)
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(client).parameters
    unknown = [name for name in given if name not in known]
    if unknown:
        raise BlindformerError(f"protocol {protocol}: has no use for --{unknown[0].replace('_', '-')}; leave it out")
    return client(server, **given, **{name: value for name, value in (hints or {}).items() if name in known})


def protocol_for(protocol: str, weights: object, embedding: str | None = None, heads: bool = False) -> str:
    """The protocol that runs a model: another one where no parameter is private. `weights`: as of compile; None: not
    said. Of a model that is said to be public an adapter is the client's own, and not the model's owner's. `heads`:
    whether the caller takes a private head apart.

    Errors: BlindformerError for private weights in a protocol that shows all of them to every party.
    """
    if weights == PRIVATE_HEAD:
        if not heads or protocol != DEFAULT or embedding not in (None, "client"):
            what = "is of classifiers, of protocol beaver with a released embedding, and of no conversation"
            raise BlindformerError(f"weights {weights}: {what}; name what is private: NAME=private")
        weights = PUBLIC
    if isinstance(weights, Mapping) and not weights.get("private") and _opens_all(weights):
        weights = PUBLIC
    released, entry = embedding in (None, "client"), protocols().get(protocol)
    if entry is None:
        return protocol
    if entry.as_it_is and not (released and weights in (None, PUBLIC)):
        what = "shows all weights to every party, and some are said to be private"
        raise BlindformerError(f"protocol {protocol}: {what}; choose another protocol, or --weights public")
    return entry.public if entry.public and released and weights == PUBLIC else protocol


def _opens_all(weights: Mapping[str, Any]) -> bool:
    patterns = weights.get("public") or ()
    return weights.get("rest") == PUBLIC or "*" in ([patterns] if isinstance(patterns, str) else patterns)


def _one_of(known: tuple[str, ...], name: str, fault: str) -> ProtocolEntry:
    if name not in known:
        raise BlindformerError(f"protocol {name}: {fault}; choose one of {', '.join(known)}")
    return protocols()[name]
