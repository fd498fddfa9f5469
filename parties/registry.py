"""How a served model is reached by each protocol: who asks it, what serves it, and which other services it needs.

One row a protocol; nothing else in this room asks for a protocol by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..protocols.errors import BlindformerError


@dataclass(frozen=True)
class Door:
    """`client`, `service`: a class and a function, as module:name. `checks`: a module, for the doctor (doctor.Checks).
    `helpers`: roles that a server needs beside it."""

    client: str
    service: str
    checks: str
    helpers: tuple[str, ...] = ()


DOORS = {
    "beaver": Door(".client.sessions_client:Client", ".service.server:serve", ".doctor.sessions", ("dealer",)),
    "ckks": Door(".client.encrypted:EncryptedClient", ".service.https.serving:serve", ".doctor.https"),
}


def door(protocol: str) -> Door:
    """Errors: BlindformerError, naming what there is."""
    if protocol not in DOORS:
        raise BlindformerError(f"protocol {protocol}: is not served; choose one of {', '.join(DOORS)}")
    return DOORS[protocol]


def open_client(protocol: str, server: str | None, hints: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The protocol's client (asking.Asking). Options that are None were not given; `hints` are left out where a
    protocol has no use for them.

    Errors: BlindformerError for an option that this protocol has no use for, and those of the client.
    """
    made = _named(door(protocol).client)
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(made).parameters
    unknown = [name for name in given if name not in known]
    if unknown:
        raise BlindformerError(f"protocol {protocol}: has no use for --{unknown[0].replace('_', '-')}; leave it out")
    return made(server, **given, **{name: value for name, value in (hints or {}).items() if name in known})


def service(protocol: str) -> Callable[..., None]:
    """The protocol's `serve(settings, announce, lifeline)`."""
    return _named(door(protocol).service)


def checks(protocol: str) -> Any:
    """What the doctor looks at for the protocol (doctor.Checks)."""
    return import_module(door(protocol).checks, __package__)


def _named(text: str) -> Any:
    module, _, name = text.partition(":")
    return getattr(import_module(module, __package__), name)
