"""A model's services on this machine: the commands that a deployment runs, as processes, for as long as needed.

The client is the calling process, so nothing tells these parties from a deployment but the addresses: certificates are
made for the occasion, and the services end when this process does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..certificates.issuing import make_certificates
from ..registry import find_served
from ..service.local_options import LocalOptions
from .processes import START_SECONDS, LaunchError, PartyProcesses

A_DAY = 86400.0  # between queries nobody owes anybody a word, and the launcher watches over the processes
ALL_MEMORY = "1000000"  # GB: the one client is whoever started them
ONE_CLIENT = ["--idle", str(A_DAY), "--query-seconds", str(A_DAY), "--memory-gb", ALL_MEMORY, "--grace", "0"]
ONE_CLIENT += ["--log-format", "json", "--lifeline"]


class LocalServices(PartyProcesses):
    """Running from construction until `close`.

    folder         the compiled one
    certificates   a folder with all roles' certificates and keys
    """

    def __init__(
        self,
        folder: Path | Callable[[Path], Path],
        timeout: float,
        protocol: str = "beaver",
        more: Sequence[str] = (),
        *,
        options: LocalOptions | None = None,
        certificates: Path | None = None,
        cores: Sequence[int] = (),
    ) -> None:
        """`folder`: a compiled one, with the server's part in it or beside it; or what writes one into a given folder.

        `more`: words for the server's command. `certificates`: FOR TESTS, in place of new ones. `cores`: that the
        server may use, for measurements.

        Errors: LaunchError; nothing is left running.
        """
        super().__init__()
        self.certificates = certificates or self.scratch / "certificates"
        try:
            if certificates is None:
                make_certificates(self.certificates, days=30)
            folder = self.folder = folder if isinstance(folder, Path) else folder(self.scratch / "compiled")
            near = [place / "server" for place in (folder, folder.parent) if (place / "server").is_dir()]
            options = replace(options or LocalOptions(), scratch=str(self.scratch))
            shared = ["--certs", str(self.certificates), "--timeout", str(timeout), *ONE_CLIENT, *options.words()]
            for role in find_served(protocol).helpers:
                self._serve(role, [role, *shared])
                more = [*more, f"--{role}", str(self.addresses[role])]
            self._serve("server", ["serve", str(next(iter(near), folder)), "--protocol", protocol, *shared, *more])
            if cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(self.processes["server"], cores)
            for role in self.processes:
                self._take(role, ("ready",), START_SECONDS)
        except BaseException:
            self.close()
            raise

    def cause(self, party: str, what: str) -> LaunchError:
        """Of a bug a peer is told that there is one; the log says where."""
        failed = self._said.get((party, "session-failed"), {}).get("what", "")
        return super().cause(party, failed if failed.startswith("internal error") else what)

    def _serve(self, role: str, words: Sequence[str]) -> None:
        with self._listen(role) as listener:
            self._start(role, [*words, "--listen", f"fd:{listener.fileno()}"], [listener.fileno()])

    def _killed(self) -> dict[str, str]:
        """Of a service, a signal may have ended the session's process alone."""
        sessions = {role: line["kind"] for (role, event), line in self._said.items() if event == "child-killed"}
        return sessions | super()._killed()
