"""The three parties as three threads of this process, over channels in memory: for tests, notebooks and debugging.

The same code runs as in three processes, only the wire differs. All secrets live in one process: nothing is protected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from ..models.compile import Compiled, decode_outputs
from ..protocols.errors import BlindformerError, PeerError
from .launcher import LocalAnswer, Progress
from .memory import memory_pair
from .session import ClientParty, DealerParty, ServerParty

IDLE_SECONDS = 86400.0


class ThreadParties:
    """A session of three threads, open until `close`. The same face as `launcher.LocalParties`.

    `record`: {"server": []} collects the payload of every frame that the server receives from the client.
    """

    def __init__(
        self,
        compiled: Compiled,
        *,
        timeout: float = 120,
        progress: Progress | None = None,
        record: dict[str, list[bytes]] | None = None,
    ) -> None:
        self.compiled, self.progress = compiled, progress
        program = compiled.program
        server_to_client, client_to_server = memory_pair("server", "client", timeout, record)
        server_to_dealer, dealer_to_server = memory_pair("server", "dealer", timeout)
        client_to_dealer, dealer_to_client = memory_pair("client", "dealer", timeout)
        self._channels = (server_to_client, server_to_dealer, dealer_to_server, dealer_to_client)
        self._failures: list[BaseException] = []
        dealer = DealerParty(program, dealer_to_server, dealer_to_client)
        server = ServerParty(program, compiled.weights, compiled.constants, server_to_client, server_to_dealer)
        self.client = ClientParty(program, compiled.constants, client_to_server, client_to_dealer)

        def serve() -> None:
            server.set_up()
            server.serve(idle=IDLE_SECONDS)

        self._threads = [
            threading.Thread(target=self._run, args=(target, name), daemon=True, name=f"blindformer {name}")
            for target, name in ((lambda: dealer.serve(idle=IDLE_SECONDS), "dealer"), (serve, "server"))
        ]
        for thread in self._threads:
            thread.start()
        started = time.perf_counter()
        self._try(lambda: self.client.set_up(progress))
        self.setup_s = time.perf_counter() - started
        self.setup_bytes = self.client.setup_bytes

    def query(self, inputs: Mapping[str, Tensor]) -> LocalAnswer:
        if self.progress:
            self.progress("offline", 0, 1)
        sources = self.compiled.encode_inputs(inputs)
        answer = self._try(lambda: self.client.query(sources, self.progress))
        return LocalAnswer(decode_outputs(self.compiled.program, answer.outputs), answer.timings, answer.others)

    def close(self) -> None:
        self.client.close()
        for thread in self._threads:
            thread.join(5)
        for channel in self._channels:
            channel.close()

    def _run(self, target: Callable[[], None], name: str) -> None:
        try:
            target()
        except BaseException as error:
            self._failures.append(error)
            for channel in self._channels:  # nobody waits for who is gone
                channel.close()

    def _try(self, step: Callable):
        """The client's step; a failure elsewhere that caused its own is the one to report."""
        try:
            return step()
        except PeerError as error:
            for thread in self._threads:
                thread.join(1)
            causes = [e for e in self._failures if not isinstance(e, BlindformerError)] or self._failures
            raise (causes[0] if causes else error) from None
