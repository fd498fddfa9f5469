"""Four parties on this machine: dealer, server and helper as services, and data owners that the tests play."""

from __future__ import annotations

from pathlib import Path

from blindformer.parties.certificates.contexts import client_context
from blindformer.parties.session.helper.owner import OwnerParty, ask_two_servers
from blindformer.tests.parties.service.harness import Deployment, Running, command

TEXT = "how is my password ?"


class Helped(Deployment):
    """A deployment of topology `helper`."""

    def __init__(self, folder: Path, compiled: Path, timeout: float = 20, **server: str) -> None:
        super().__init__(folder, compiled, server={"--topology": "helper", **server}, timeout=timeout)

    @property
    def helper(self) -> Running:
        return self._services["helper"]

    def start(self, role: str, **options: str) -> Running:
        return self._start_helper() if role == "helper" else super().start(role, **options)

    def _start_helper(self) -> Running:
        """At the port it had before, if it ran before."""
        before = self._services.get("helper")
        words = {
            "--certs": str(self.certificates),
            "--listen": f"127.0.0.1:{before.address[1] if before else 0}",
            "--server": self.server.ready["address"],
            "--dealer": self.dealer.ready["address"],
            "--cache": str(self.folder / "masked"),
            "--timeout": str(self.timeout),
            "--log-format": "json",
        }
        folder = str(self.compiled / "helper")
        running = Running(
            command("helper", folder, *(word for option in words.items() for word in option)), self.folder
        )
        self._services["helper"] = running
        running.wait_for("ready")
        return running

    def __enter__(self) -> Helped:
        super().__enter__()
        try:
            self.start("helper")
        except BaseException:
            self.__exit__()
            raise
        return self


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
