"""`run_parties`: a function at every party of a session on this machine, as CrypTen's `run_multiprocess` has it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...protocols.crypten.versions import check_versions
from ...protocols.errors import BlindformerError
from ..certificates.contexts import server_context
from ..certificates.issuing import make_certificates
from ..launch.processes import START_SECONDS, LaunchError
from ..session.parties import DEALER, numbered
from ..session.tensors import TensorSession, deal, meet
from ..transport.tls import listen


def run_parties(
    function: Callable[[TensorSession], Any],
    parties: int = 2,
    folder: str | Path | None = None,
    *,
    timeout: float = 120,
) -> list[Any]:
    """`function(session)` at every party, each a process of this machine over mutual TLS, beside a dealer; the results
    by rank.

    `function` is found by its name in its module, so guard the script with `if __name__ == "__main__"`.
    Errors: LaunchError, naming the party that failed; CryptenError if CrypTen is not there.
    """
    check_versions()
    names, spawn = numbered(parties).names, get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="blindformer-") as certificates:
        make_certificates(certificates, roles=(DEALER, *names), days=1)
        ends, processes = {}, {}
        try:
            for name in (DEALER, *names):
                ends[name], theirs = spawn.Pipe()
                task = None if name == DEALER else function
                # daemon: none outlives this process
                arguments = (name, task, certificates, folder, timeout, theirs)
                processes[name] = spawn.Process(target=_party, args=arguments, daemon=True, name=name)
                processes[name].start()
                theirs.close()
            addresses = {name: _hear(ends[name], name, START_SECONDS + timeout) for name in (*names, DEALER)}
            for end in ends.values():
                end.send(addresses)
            return [_hear(ends[name], name, None) for name in names]
        finally:
            for process in processes.values():
                process.kill()
                process.join()


def _party(name: str, function: Any, certificates: str, folder: Any, timeout: float, parent: Any) -> None:
    """One process: says where it listens, hears where the others do, and says what it found."""
    import torch

    torch.set_num_threads(1)
    try:
        listener = listen("127.0.0.1", 0, server_context(certificates, name), timeout=timeout)
        parent.send(("found", "{}:{}".format(*listener.address)))
        addresses = parent.recv()
        options = {"timeout": timeout, "wait": timeout, "listener": listener}
        if function is None:
            deal(addresses, certificates, **options)
            return
        if name == [other for other in addresses if other != DEALER][-1]:
            listener.close()  # nobody comes after the last
            options["listener"] = None
        with meet(name, addresses, certificates, folder, **options) as session:
            found = function(session)
        parent.send(("found", found))
        with suppress(EOFError):
            parent.recv()  # torch hands tensors over by this process, so it stays until it is ended
    except BlindformerError as error:
        parent.send(("failed", str(error)))
    except Exception as error:
        parent.send(("failed", f"{type(error).__name__}: {error}"))


def _hear(end: Any, name: str, seconds: float | None) -> Any:
    """What a process says next. Errors: LaunchError."""
    try:
        if not end.poll(seconds):
            raise LaunchError(name, f"did not start in {seconds:g} seconds", "see whether the machine is busy")
        kind, found = end.recv()
    except (EOFError, ConnectionResetError):
        raise LaunchError(name, "ended without a word") from None
    if kind == "failed":
        raise LaunchError(name, found)
    return found
