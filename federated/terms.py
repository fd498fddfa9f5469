"""The terms on which a client takes part, in its node's configuration: what it asks of a run before it trains.

The server's settings are a wish. A client that finds less protection in them than its terms want refuses that round, in
a line that the server's report shows, and the others go on. Noise that clients add themselves (dp local and example) is
in the client's own hand, and so are secure sums; that the server adds its noise (dp central) is the server's word.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .client_identity import ClientIdentity
from .examples import NAME, OWN, PARTITION, TABLE
from .settings import FederateError, FederateSettings

MODES = get_args(FederateSettings.model_fields["dp"].annotation)
_OTHERS = (PARTITION, OWN, NAME, *TABLE, "num-partitions")  # keys that are no terms; the last one is Flower's
_PAIR = re.compile(r"([\w-]+)=('[^']*'|\"[^\"]*\"|\S+)")


class Terms(BaseModel):
    """Read from a node's configuration, by the names with dashes.

    needs-dp      kinds of differential privacy, with commas: one of them (default: any, or none)
    least-noise   least multiplier of the noise
    needs-secagg  secure sums alone
    known-keys    a file of public keys: secure sums with clients alone whose keys of a session one of these has signed
    identity      a file with this client's own key, to sign its own with
    trusted-others  with dp example in a secure sum: how many of the other clients add the noise that they should. This
                  one leaves them their part of it (0: it adds all of the noise itself)
    most-rounds   of one run (0: any number). With least-noise it bounds what epsilon may come to
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    needs_dp: str = ""
    least_noise: float = Field(default=0.0, ge=0)
    needs_secagg: bool = Field(default=False, strict=True)
    known_keys: str = ""
    identity: str = ""
    trusted_others: int = Field(default=0, ge=0)
    most_rounds: int = Field(default=0, ge=0)

    @field_validator("needs_dp")
    @classmethod
    def _modes(cls, value: str) -> str:
        for mode in value.split(",") if value else ():
            if mode not in MODES:
                raise ValueError(f"{mode!r} is none of {', '.join(MODES)}")
        return value

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Terms:
        """Errors: FederateError, also for a key that nobody knows: a term may not be lost by a slip of the pen."""
        try:
            return cls.model_validate({key: value for key, value in node.items() if key not in _OTHERS})
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                terms = [field.alias or name for name, field in cls.model_fields.items()]
                known = ", ".join([*_OTHERS[:-1], *terms])
                raise FederateError(f"node configuration: unknown key {key!r}; use {known}") from None
            raise FederateError(f"node configuration: {key}: {first['msg'].removeprefix('Value error, ')}") from None

    def who(self) -> ClientIdentity:
        """Errors: FederateError for a file that holds no such key."""
        return ClientIdentity.of(self.identity, self.known_keys)

    def check(self, settings: FederateSettings, noise: float, number: int) -> None:
        """Before round `number`, of this noise. Errors: FederateError that names what is asked, and what is wanted."""
        modes = self.needs_dp.split(",")
        if self.needs_dp and settings.dp not in modes:
            raise FederateError(f"dp {settings.dp} is asked for, its needs-dp is {self.needs_dp}; use that")
        given = 0.0 if settings.dp == "none" else noise
        if not given >= self.least_noise:
            raise FederateError(
                f"noise {given:g} is asked for, its least-noise is {self.least_noise:g}; "
                + ("choose a kind of dp" if settings.dp == "none" else "raise the noise, or lower epsilon")
            )
        if (self.needs_secagg or self.known_keys) and not settings.secagg:
            term = "needs-secagg is true" if self.needs_secagg else f"known-keys are {self.known_keys}"
            raise FederateError(f"secagg false is asked for, its {term}; turn secagg on")
        if self.most_rounds and number > self.most_rounds:
            raise FederateError(f"round {number} is asked for, its most-rounds is {self.most_rounds}; ask for fewer")


def check_needed(nodes: Mapping[int, Mapping[str, Any]], settings: FederateSettings) -> None:
    """Before a run whose nodes are known. Errors: FederateError for a term that it has no use for."""
    shared = settings.secagg and settings.dp == "example"
    if not shared and any(node.get("trusted-others") for node in nodes.values()):
        raise FederateError("trusted-others: needs secagg and dp example, where clients share the noise; leave it out")


def node_configs(texts: Sequence[str], clients: int) -> dict[int, dict[str, Any]]:
    """Configurations of a run's nodes, by number from 1: their parts of the data set, and what `texts` add.

    texts  `key=value ...` as Flower's SuperNode takes it, for all clients, or after `N:` for client N (from 0)

    Errors: FederateError.
    """
    nodes: dict[int, dict[str, Any]] = {i + 1: {PARTITION: i} for i in range(clients)}
    for text in texts:
        number, pairs = re.fullmatch(r"(?:\s*(\d+)\s*:)?(.*)", text, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if number is not None and int(number) >= clients:
            raise FederateError(f"node configuration {text!r}: there are {clients} clients; use 0 and up")
        if _PAIR.sub("", pairs).strip() or not pairs.strip():
            raise FederateError(f"node configuration {text!r}: give key=value, as in 'least-noise=1.0 most-rounds=20'")
        try:
            given = tomllib.loads("\n".join(f"{key} = {value}" for key, value in _PAIR.findall(pairs)))
        except tomllib.TOMLDecodeError:
            raise FederateError(
                f"node configuration {text!r}: a value is a number, true, false, or a text in quotes"
            ) from None
        Terms.of(given)
        for node in nodes if number is None else [int(number) + 1]:
            nodes[node] |= given
    return nodes
