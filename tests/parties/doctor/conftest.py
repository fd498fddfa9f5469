"""A party's own folder of a deployment, the peers that it dials, and what the doctor says of them."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import pytest
from blindformer.models.artifacts import save
from blindformer.models.building import compile_lengths
from blindformer.models.loading.load import load
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import server_context
from blindformer.parties.doctor.examine import examine
from blindformer.parties.transport.frames import send_error
from blindformer.parties.transport.handshake import PeerFacts, answer_probe
from blindformer.parties.transport.tls import listen
from blindformer.protocols.errors import PeerError
from blindformer.tests.patience import PATIENCE


class Skewed:
    """The channel of a party whose clock is `seconds` ahead."""

    def __init__(self, channel, seconds: float) -> None:
        self.channel, self.seconds = channel, seconds

    def send_message(self, message: dict) -> None:
        if "probe" in message:
            message["probe"]["time"] += self.seconds
        self.channel.send_message(message)

    def __getattr__(self, name: str):
        return getattr(self.channel, name)


@contextlib.contextmanager
def answering(folder: Path, role: str, facts: PeerFacts, ahead: float = 0.0):
    """A party that does nothing but answer probes; its port."""
    with listen("127.0.0.1", 0, server_context(folder, role), timeout=PATIENCE) as listener:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(PeerError), listener.accept(0.1, refused=lambda error: None) as channel:
                    try:
                        answer_probe(Skewed(channel, ahead), channel.recv_message(), facts)
                    except PeerError as error:
                        send_error(channel, error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.address[1]
        stop.set()
        thread.join(PATIENCE)


@pytest.fixture(scope="session")
def compiled(tiny_classifier, tmp_path_factory):
    loaded = load(tiny_classifier)
    whole = compile_lengths(loaded, [8], texts=["how is my password ?", "not good , bad !"])[8]
    return save(whole, tmp_path_factory.mktemp("compiled"), loaded), whole.program


@pytest.fixture
def place(tmp_path, compiled):
    """`place(role, text)`: this party's own folder, with nothing but what it may hold, and its blindformer.toml."""
    make_certificates(tmp_path / "all", days=90)

    def make(role: str, text: str = "") -> Path:
        here = tmp_path / role
        (here / "certs").mkdir(parents=True, exist_ok=True)
        for name in ("ca.pem", f"{role}.pem", f"{role}.key"):
            shutil.copy(tmp_path / "all" / name, here / "certs" / name)
        if role != "dealer":
            shutil.copytree(compiled[0] / role, here / "compiled" / role, dirs_exist_ok=True)
        (here / "blindformer.toml").write_text(text)
        return here / "blindformer.toml"

    return make


def found(path: Path, role: str | None = None) -> dict:
    """Checks by name; none is met twice."""
    checks = list(examine(path, role))
    by_name = {check.name: check for check in checks}
    assert len(by_name) == len(checks)
    assert all(check.fix for check in checks if check.status != "good")
    return by_name


def to_fix(checks: dict) -> dict:
    return {name: check.found for name, check in checks.items() if name != "kernels" and check.status != "good"}


def addresses(**ports: int) -> str:
    return "".join(f'[parties.{role}]\naddress = "127.0.0.1:{port}"\n' for role, port in ports.items())
