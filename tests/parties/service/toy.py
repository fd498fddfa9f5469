"""A service without TLS, weights or torch: its children do what the lines of their peer say. Run by test_supervisor.py.

python toy.py '{"sessions": 2, ...}'    limits; the log goes to stderr, as JSON
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time

from blindformer.parties.service.admission import ServiceLimits
from blindformer.parties.service.child import Stopping
from blindformer.parties.service.logs import Log
from blindformer.parties.service.metrics import Exporter
from blindformer.parties.service.service import Service
from blindformer.parties.session.messages import SlotsBusy
from blindformer.protocols.errors import PeerProtocolError

HELLO = b"\x16\x03\x01\x00\x05hello"


class Paper:
    """Certificates that were revoked, when they are read again, if their number is bad."""

    expires = 2e9

    def __init__(self) -> None:
        self.reloads = 0

    def reload(self) -> None:
        self.reloads += 1

    def changed(self) -> bool:
        return False

    def revoked(self, serial: str) -> bool:
        return self.reloads > 0 and serial == "bad"

    def warning(self) -> str:
        return ""


class Toy(Service):
    def __init__(self, limits: ServiceLimits) -> None:
        self.limits, self.identity = limits, Paper()

    def work(self, sock, control) -> None:
        sock.setblocking(True)
        assert sock.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
        lines = sock.makefile("r")

        def say(text: str) -> None:
            sock.sendall(text.encode() + b"\n")

        say(f"pid {os.getpid()}")
        try:
            for line in lines:
                command, *words = line.split()
                try:
                    COMMANDS[command](control, say, *words)
                except SlotsBusy as busy:
                    say(f"busy {busy.retry_after} {busy.why}")
        except Stopping as stopping:
            say(f"stopping {stopping.why or ''}".strip())
            raise

    def kind(self, role: str):
        return "visit" if role == "visitor" else "session"

    def reply(self, report, peer, child):
        return {"kept": peer.owner[:2]}

    def gauges(self):
        return {**super().gauges(), "correlations_left": 7}


def introduce(control, say, role: str, owner: str, serial: str = "1") -> None:
    control.introduce(role, owner * 32, serial, "5e" * 16, "99" * 32)
    say("open")


def query(control, say, number: str, until: str = "") -> None:
    """Hold a worker; with `until`, as long as that file is not there."""
    with control.slot(int(number), lambda place: say(f"queued {place}")):
        say(f"go {number}")
        while until and not os.path.exists(until):
            time.sleep(0.01)
        say(f"done {number}")


def fds(control, say) -> None:
    say(f"fds {len(os.listdir('/proc/self/fd'))}")


def die(control, say) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fault(control, say) -> None:
    raise PeerProtocolError("client", "said something odd", "mend it")


def bug(control, say) -> None:
    raise KeyError("a secret value")


def hoard(control, say, megabytes: str) -> None:
    """Take so much memory, a megabyte at a time."""
    hoarded = [bytes(1 << 20) for _ in range(int(megabytes))]
    say(f"has {len(hoarded)}")


def mutter(control, say, *words: str) -> None:
    control._sock.sendall(" ".join(words).encode() + b"\n")


def deaf(control, say) -> None:
    control._sock.shutdown(socket.SHUT_WR)
    time.sleep(1000)


COMMANDS = {f.__name__: f for f in (introduce, query, fds, die, fault, bug, hoard, mutter, deaf)}


def main() -> None:
    options = json.loads(sys.argv[1])
    if files := options.pop("files", None):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    log = Log("toy", "json")
    exporter = Exporter(socket.create_server(("127.0.0.1", 0)), log) if options.pop("metrics", False) else None
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    lifeline = 0 if options.pop("lifeline", False) else None
    toy, metrics = Toy(ServiceLimits(**options)), str(exporter.address) if exporter else ""
    toy.run(
        listener, log, lambda: log.info("ready", address=str(toy.address), metrics=metrics, pid=os.getpid()),
        exporter, lifeline,
    )  # fmt: skip


if __name__ == "__main__":
    main()
