"""Owner, helper, server and dealer as threads over channels in memory, with everything that crosses them kept."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from blindformer.models.program.two_server import for_two_servers
from blindformer.parties.local.threads import ThreadDealer
from blindformer.parties.session.client import ClientParty
from blindformer.parties.session.compute_slots import ComputeSlots
from blindformer.parties.session.helper.owner import OwnerParty
from blindformer.parties.session.helper.owner_shares import OwnerShares
from blindformer.parties.session.helper.party import HelperParty
from blindformer.parties.session.meeting import new_session, tell
from blindformer.parties.session.server import ServerParty
from blindformer.parties.session.weights import Served
from blindformer.parties.transport.memory import MemoryChannel, memory_pair
from blindformer.protocols.errors import PeerError
from blindformer.protocols.streams import new_seed
from blindformer.tests.protocols.programs import Case

PARTIES = ("owner", "helper", "server", "dealer")
ROLES = {"owner": "client"}  # what its certificate calls it


class Four:
    """`owner` is ready to ask. A party that fails tells the others and closes its channels, as its process would.

    `admission`: by party. `received`: payloads by (receiver, sender). `errors`: by party, once `close` has returned.
    """

    def __init__(
        self,
        compiled,
        admission: dict[str, ComputeSlots] | None = None,
        timeout: float = 30,
        owner: type[OwnerParty] = OwnerParty,
    ) -> None:
        self.case = Case(for_two_servers(compiled.program), {}, compiled.weights, compiled.constants)
        self.received: dict[tuple[str, str], list[bytes]] = {}
        self.errors: dict[str, BaseException] = {}
        self.ends: dict[str, list[MemoryChannel]] = {party: [] for party in PARTIES}
        self._threads: list[threading.Thread] = []
        self._timeout, self._admission = timeout, admission or {}
        self._session, self._dealer = new_session(), ThreadDealer(self._connect, self._start)
        self.waited: list[dict] = []
        owner_helper, helper_owner = self._connect("owner", "helper")
        owner_server, server_owner = self._connect("owner", "server")
        helper_server, server_helper = self._connect("helper", "server")
        self.owner = owner(self.case.program, owner_server, owner_helper, waiting=self.waited.append)
        self._start(lambda: self._help(helper_owner, helper_server), "helper")
        self._start(lambda: self._serve(server_owner, server_helper), "server")

    def query(self, sources, more: bool = False):
        return self.owner.query(sources, more=more)

    def close(self) -> None:
        """Say goodbye, and wait until all have ended."""
        self.owner.close()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), thread.name

    def vanish(self, party: str) -> None:
        """What happens when its process is killed."""
        for end in self.ends[party]:
            end.interrupt()

    def _help(self, owner: MemoryChannel, server: MemoryChannel) -> None:
        leave = self._dealer.seeding(self.case.program, self._session)
        self.helper = HelperParty(
            owner,
            ClientParty(self.case.program, self.case.constants, server, leave, session=self._session),
            self._admission.get("helper"),
        )
        self.helper.set_up()
        self.helper.serve(idle=60)
        self.helper.close()

    def _serve(self, owner: MemoryChannel, helper: MemoryChannel) -> None:
        party = ServerParty(
            Served(self.case, new_seed()),
            helper,
            self._dealer.dialling(self.case.program, self._session),
            session=self._session,
            admission=self._admission.get("server"),
            outside=OwnerShares(owner, self.case.program),
        )
        party.set_up()
        party.serve(idle=60)
        party.close()

    def _connect(self, a: str, b: str) -> tuple[MemoryChannel, MemoryChannel]:
        a, b = ("helper" if name == "client" else name for name in (a, b))  # to the dealer, P1 is a client
        seen = {(ROLES.get(x, x)): self.received.setdefault((x, y), []) for x, y in ((a, b), (b, a))}
        pair = memory_pair(ROLES.get(a, a), ROLES.get(b, b), self._timeout, seen)
        for party, end in zip((a, b), pair, strict=True):
            self.ends[party].append(end)
        return pair

    def _start(self, target: Callable[[], None], party: str) -> None:
        def guarded() -> None:
            torch.set_num_threads(1)
            try:
                target()
            except PeerError as error:
                self.errors[party] = error
                tell(self.ends[party], error)
            except BaseException as error:
                self.errors[party] = error
                self.vanish(party)

        thread = threading.Thread(target=guarded, daemon=True, name=party)
        self._threads.append(thread)
        thread.start()
