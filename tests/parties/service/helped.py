"""Four parties on this machine: dealer, server and helper as services, and data owners that the tests play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.session.helper_topology import OwnerParty, ask_two_servers
from blindformer.tests.shared.deployment import Deployment

TEXT = "how is my password ?"


class Helped(Deployment):
    """A deployment of topology `helper`."""

    roles = ("dealer", "server", "helper")
    topology, dialled = "helper", ("server", "helper")

    def __init__(self, folder: Path, compiled: Path, timeout: float = 20, **server: Any) -> None:
        super().__init__(folder, compiled, server=server, timeout=timeout)

    def words(self) -> list[str]:
        return ["--topology", "helper", *super().words()]


class Owner:
    """A data owner's session; `name`: of its certificate."""

    def __init__(self, site: Helped, part, length: int = 8, name: str = "client", text: str = TEXT) -> None:
        self.question, self.program = part.encode(text, length), part.for_length(length).program
        self.party: OwnerParty = ask_two_servers(
            self.program,
            client_context(site.certificates, "client", name),
            site.server.address,
            site.helper.address,
            site.timeout,
        )

    def ask(self, more: bool = False):
        answer = self.party.query(self.question.sources(), more=more)
        return {name: value.double() * 2.0 ** -self._scale(name) for name, value in answer.outputs.items()}

    def close(self) -> None:
        self.party.close()

    def _scale(self, name: str) -> int:
        return self.program.instructions[self.program.outputs[name]].scale
