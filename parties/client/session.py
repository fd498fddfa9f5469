"""A session: one compiled program, and the parties that compute it. It is opened, asked and closed; every protocol and
place has its own class. A client (base.py) encodes texts and asks again, through as many sessions as it needs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ...models.artifacts import texts_of
from ...models.compile import AnswerOutOfRange, Compiled, decode_outputs
from ...models.program.program import Program
from ...protocols.ckks.sealed import SealedError
from ...protocols.errors import BlindformerError, PeerGone, PeerTimeout
from ..certificates.tls_folder import client_context
from ..config import Address, Role, Settings, load_settings
from ..launch import LocalOptions
from ..launch.processes import LaunchError, LocalServices
from ..receipts.receipt import Prices, Receipt, VouchedSession, issue, stated
from ..receipts.statement import ReceiptError
from ..registry import find_served, find_talking
from ..reports.report import AnsweredQuery, Report, each_in_words
from ..session.messages import PartRun, Waiting
from ..session.online import Answer, Progress
from ..session.parties import Parties
from ..transport.handshake import knock, my_facts

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.rows import Pass
    from ..session.online import OnPass

LOST = (PeerGone, PeerTimeout, LaunchError)  # the session is lost, and nothing says that another would be, too


class ClientError(BlindformerError):
    """A client that is asked for something it cannot do."""


@dataclass
class Reply:
    """The answer to one query, which may be of several texts.

    answer    timings, and what the other parties say of themselves
    read      decodes the rows of some texts; what is encrypted is decrypted now
    texts     that the query had places for
    retried   why a first attempt failed, if one did
    """

    report: Report
    answer: Answer
    read: Callable[[slice], dict[str, Tensor]] = field(repr=False)
    texts: int = 1
    retried: str = ""

    def outputs(self, place: int | None = None) -> dict[str, Tensor]:
        """Float32 outputs by name: of one text, or (None) of all. Errors: AnswerOutOfRange, SealedError."""
        return self.read(slice(None) if place is None or self.texts == 1 else slice(place, place + 1))


class Session(ABC):
    """Open from construction until `close`; a context manager. A class whose parties are started on this machine takes
    a compiled folder or a `Compiled`, and the keywords threads, timeout, progress and length (of a folder's programs).

    setup_s, setup_bytes  what it took before the first query
    protocol              its name in the registry; `report` makes the report of a query, `costs` says it in a line

    Errors of `ask` and `query`: ProgramError and RangeError for wrong inputs, which the session survives; of a party's
    failure PeerError or LaunchError, which ends it. AnswerOutOfRange is that of one answer.
    """

    protocol: ClassVar[str]
    report: ClassVar[Callable[[AnsweredQuery], Report]]
    costs: ClassVar[Callable[[list[Report], str], str]] = staticmethod(each_in_words)
    shares_queries: ClassVar[bool] = False
    """Whether several texts or images share a query at the price of one."""
    parties: Parties | None = None
    party: Any = None
    """This side's end, where it has one."""
    open, setup_s, setup_bytes = True, 0.0, 0
    program: Program
    plan: str

    def ask(self, inputs: Mapping[str, Tensor], more: bool = False) -> Reply:
        """Run one query on the model's inputs. `more`: another query follows, and is prepared meanwhile."""
        self.check_open()
        return self._ask(inputs, more)

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> Answer:
        """Run one query, and return the float32 outputs of all texts. Raises AnswerOutOfRange, too."""
        reply = self.ask(inputs, more)
        return replace(reply.answer, outputs=reply.outputs())

    def passes(self, on_pass: OnPass | None = None) -> Pass:
        """Runs the passes of a conversation, whose state the session keeps. `on_pass`: called after each.

        Errors: BlindformerError where the protocol keeps no state between queries.
        """
        find_talking(self.protocol)
        raise NotImplementedError

    def prepare(self, part_run: PartRun | None = None) -> None:  # noqa: B027
        """Preprocess the next query. `part_run`: what it runs."""

    def lost(self, error: BaseException) -> bool:
        """After an error of `ask`: close what the error has spoilt. Whether a new session may answer."""
        return not self.open and isinstance(error, LOST)

    @abstractmethod
    def close(self) -> None:
        """End the session, and what runs for it alone. Safe to call twice."""

    @classmethod
    def texts_of_query(cls, compiled: Compiled) -> int:
        """Texts or images that one query takes at the price of one."""
        return 1

    def working(self) -> AbstractContextManager[object]:
        """Around what the parties do."""
        return nullcontext()

    @abstractmethod
    def _ask(self, inputs: Mapping[str, Tensor], more: bool) -> Reply: ...

    @property
    def wire_overhead_bytes(self) -> int:
        """Framing and TLS around the payload, on the client's connection with the server, where that is counted."""
        return 0

    @property
    def texts(self) -> int:
        """Texts of one query."""
        return texts_of(self.program)

    def check_open(self) -> None:
        """Raise ClientError if the session is closed."""
        if not self.open:
            raise ClientError("client: the session is closed; open a new one")

    def vouched(self) -> VouchedSession:
        """What all parties state so far. Raises ReceiptError if no party has a certificate to sign with."""
        signer = getattr(self.party, "signer", None)
        if signer is None:
            what = f"protocol {self.protocol} signs nothing here; use protocol beaver, with parties in processes"
            raise ReceiptError(f"receipt: {what}")
        self.check_open()
        with self.working():
            facts, others = self.party.vouched()
        about = {**self._stated(), "plan": self.plan, "protocol": self.protocol}
        return VouchedSession(about, facts, others, self.party.notes.spent(), signer)

    def all_vouched(self) -> list[VouchedSession]:
        """What all parties state, in this session and those that are part of it."""
        return [self.vouched()]

    def _stated(self) -> dict[str, Any]:
        """What this side states of the model, in a receipt."""
        return stated(self.program)

    def receipt(self, prices: Prices = None) -> Receipt:
        """The receipt so far. `prices`: settings of [prices]. Raises ReceiptError."""
        return issue(self.all_vouched(), prices)

    def report_of(self, answer: Answer) -> Report:
        """The cost of an answer."""
        setup = {"setup_s": self.setup_s, "setup_bytes": self.setup_bytes, "parties": self.parties}
        return type(self).report(AnsweredQuery(self.program, self.plan, answer.timings, answer.others, **setup))

    def _reply(self, answer: Answer, read: Callable[[slice], dict[str, Tensor]] | None = None) -> Reply:
        """`read`: where `answer` holds other things than ring integers."""

        def decoded(rows: slice) -> dict[str, Tensor]:
            mine = {name: value[rows] if value.dim() else value for name, value in answer.outputs.items()}
            return decode_outputs(self.program, mine)

        return Reply(self.report_of(answer), answer, read or decoded, texts_of(self.program))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# What an argument of a client overrides in the configuration, and its type there.
_OVERRIDES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "server": ("parties.server.address", str),
    "dealer": ("parties.dealer.address", str),
    "helper": ("parties.helper.address", str),
    "protocol": ("session.protocol", str),
    "topology": ("session.topology", str),
    "audits": ("session.audits", float),
    "timeout": ("session.timeout", float),
    "certificates": ("certificates.folder", Path),
    "folder": ("client.folder", Path),
    "adapter": ("client.adapter", str),
    "pad": ("client.pad", bool),
    "client_memory": ("client.memory", str),
    "cache": ("client.cache", Path),
    "store": ("client.store", Path),
    "use_store": ("client.use_store", str),
    "commitment": ("client.commitment", str),
    "device": ("client.device", str),
    "wait": ("client.wait", float),
}


def client_settings(
    config: str | Path | None, protocols: Collection[str] | None = None, /, **given: object
) -> Settings:
    """The configuration, and what was given over it. `protocols`: as of `load_settings`. Errors: ConfigError."""
    over = {_OVERRIDES[name][0]: _OVERRIDES[name][1](value) for name, value in given.items() if value is not None}
    return load_settings(None if config is None else Path(config), protocols, **over)


class PartyAddresses:
    """Where the other parties are: as the settings say; or (`local`) services of this machine, which are started when
    an address is asked for, with these settings of [server], and again when one of them has ended. `options`: of each
    of them."""

    def __init__(
        self, settings: Settings, local: Mapping[str, Any] | None = None, options: LocalOptions | None = None
    ) -> None:
        self.settings, self._local, self._options = settings, local, options or LocalOptions()
        self.services: LocalServices | None = None
        self._starting = threading.Lock()  # clients beside each other share the services

    def reached(self) -> tuple[Path, Callable[[Role], Address]]:
        """The folder of certificates, and each party's address: of the same services. If they were asked for one after
        the other, a service could end between the two, and another start with another CA."""
        services = self._started()
        if services is None:
            return self.settings.certificates.folder, self.settings.address
        return services.certificates, services.addresses.__getitem__

    def all(self) -> dict[str, Address]:
        """Of the parties that are dialled, by role; of this machine only those that were started."""
        if self._local is not None:
            return dict(self.services.addresses) if self.services else {}
        helpers, topology = find_served(self.settings.session.protocol).helpers, self.settings.session.topology
        roles: list[Role] = ["server", *(["dealer"] if "dealer" in helpers and topology != "pair" else [])]
        return {role: self.settings.address(role) for role in roles}

    def knock(self, *roles: Role) -> None:
        """A handshake with each of these, and no session. Errors: PeerError if one does not answer."""
        certificates, address = self.reached()
        context = client_context(certificates, "client")
        for role in roles:
            knock(address(role), context, role, my_facts("client", self.settings.shared_hash()))

    def close(self) -> None:
        services, self.services = self.services, None
        if services is not None:
            services.close()

    def _started(self) -> LocalServices | None:
        with self._starting:
            if self.services is not None and not self.services.alive:
                self.services.close(0)
                self.services = None
            if self._local is not None and self.services is None:
                mine, session = self.settings.client, self.settings.session
                self.services = LocalServices(
                    mine.folder,
                    session.timeout,
                    session.protocol,
                    self._local,
                    options=self._options,
                    device=mine.device,
                    topology=session.topology,
                )
            return self.services


def telling(progress: Progress) -> Waiting:
    """Tells of this side's place in the server's queue."""

    def waiting(message: dict[str, Any]) -> None:
        if isinstance(place := message.get("queued"), int):
            progress("queue", 0, place + 1)

    return waiting


def ask_all(
    session: Session, inputs: Sequence[dict[str, Tensor]]
) -> Iterator[tuple[list[dict[str, Tensor] | BlindformerError], Reply | None]]:
    """(the outputs or the error of each input, the reply) of queries in order, with as many inputs as have places: the
    last one is repeated until a query is full. An error that ends the session is that of all inputs that are left."""
    texts = session.texts
    for at in range(0, len(inputs), texts):
        items = list(inputs[at : at + texts])
        full = [*items, *items[-1:] * (texts - len(items))]
        try:
            reply = session.ask({name: torch.cat([item[name] for item in full]) for name in full[0]})
        except BlindformerError as error:
            yield [error] * (len(items) if session.open else len(inputs) - at), None
            if not session.open:
                return
        else:
            yield [_outputs_or_error(reply, place) for place in range(len(items))], reply


def _outputs_or_error(reply: Reply, place: int) -> dict[str, Tensor] | BlindformerError:
    try:
        return reply.outputs(place)
    except (AnswerOutOfRange, SealedError) as error:
        return error
