"""Two pairs of server and dealer behind a TCP proxy: one address for clients, and one count of what they ask."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from blindformer.models.building import compile_folder
from blindformer.parties.session.messages import LimitReached
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import Address, Deployment

TEXTS = ["how is my password ?", "not good , bad !"]


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(targets: list[Address]) -> Iterator[str]:
    """Its address. Each connection goes to the first target that listens."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                inside, _ = listener.accept()
                for target in targets:
                    with suppress(ConnectionRefusedError):
                        outside = socket.create_connection(target)
                        for ends in ((inside, outside), (outside, inside)):
                            threading.Thread(target=pump, args=ends, daemon=True).start()
                        break
                else:
                    inside.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield "{}:{}".format(*listener.getsockname())
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_client_of_a_pair_that_ends_goes_on_at_the_other_with_the_same_count(postgres, tiny_classifier, tmp_path):
    compile_folder(tiny_classifier, tmp_path / "compiled", lengths=[8])
    limited = {"database": postgres.new(), "queries_each": 3}
    with ExitStack() as stack:
        pairs = [stack.enter_context(Deployment(tmp_path, tmp_path / "compiled", server=limited)) for _ in range(2)]
        address = {
            role: stack.enter_context(proxy([getattr(pair, role).address for pair in pairs]))
            for role in ("server", "dealer")
        }
        with pairs[0].client(**address, wait=PATIENCE) as client:
            first = [client.query(text).value[0]["label"] for text in TEXTS]
            pairs[0].server.kill()
            pairs[0].dealer.kill()
            assert client.query(TEXTS[0]).value[0]["label"] == first[0]
            with pytest.raises(LimitReached, match="has answered the 3 texts"):
                client.query(TEXTS[1])
        assert pairs[1].server.logged("session-opened")
