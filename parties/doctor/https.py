"""What `blindformer doctor` looks at for encrypted queries: libraries, circuits, room for keys, and the server."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...cores import cores
from ...models.artifacts import ArtifactError
from ...models.artifacts.circuits import read_circuit
from ...models.artifacts.layout import find_part
from ...models.artifacts.writing import text_length
from ...models.program.program import Program
from ...protocols.ckks.facts import CircuitNeeds, facts_from
from ...protocols.ckks.frames import most
from ...protocols.ckks.parameters import CkksError
from ...protocols.errors import PeerError, PeerTimeout
from ...versions import my_version
from ..certificates.authority import CertificateError
from ..certificates.contexts import client_context
from ..client.http import Api
from ..config import Role, Settings
from ..session.compute_slots import SlotsBusy
from .checks import ANSWER_SECONDS, GB, Check, clock_check, failed, programs_check, room, version_check

ROLES: tuple[Role, ...] = ("server", "client")
LIBRARIES = {"client": ("tenseal",), "server": ("tenseal", "fastapi", "uvicorn")}
MB = 1e6


def peers(role: Role, topology: str) -> tuple[Role, ...]:
    """A client asks the server, and nobody asks anybody else."""
    return ("server",) if role == "client" else ()


def files(settings: Settings, role: Role, programs: Sequence[Program]) -> Iterator[Check]:
    missing = [name for name in LIBRARIES[role] if find_spec(name) is None]
    if missing:
        yield Check("libraries", "bad", f"{', '.join(missing)} missing", "run: pip install 'blindformer[he]'")
    try:
        found = _circuits(getattr(settings, role).folder, role, programs)
        for facts in found:
            facts_from(facts.to_json())
    except (ArtifactError, CkksError) as error:
        yield failed("circuits", error, "compile again")
        return
    sizes = ", ".join(
        f"N = {facts.parameters.degree} for {facts.texts} a query, keys {most(facts.key_items()) / MB:.0f} MB at most"
        for facts in found
    )
    yield Check("circuits", "good", sizes, figures={"key_bytes": [most(facts.key_items()) for facts in found]})
    if role == "server":
        yield from _room_for_keys(settings, found)


def _circuits(folder: Path, role: Role, programs: Sequence[Program]) -> list[CircuitNeeds]:
    """Errors: ArtifactError, CkksError."""
    found, part = [], find_part(folder, role)
    for program in programs:
        circuit = read_circuit(part, text_length(program))
        if circuit is None:
            raise CkksError(
                f"{folder}: is not compiled for encrypted queries; compile a model that was distilled with plan he"
            )
        found.append(circuit.facts)
    return found


def _room_for_keys(settings: Settings, found: Sequence[CircuitNeeds]) -> Iterator[Check]:
    mine, largest = settings.server, max(most(facts.key_items()) for facts in found)
    if mine.keys_gb * GB < largest:
        what = f"server.keys_gb = {mine.keys_gb:g}, and one client's may take {largest / GB:.2f} GB"
        yield Check("keys on disk", "bad", what, "raise it")
    else:
        clients = int(mine.keys_gb * GB // largest)
        yield room("keys on disk", Path(tempfile.gettempdir()), largest, "TMPDIR", clients)
    workers = mine.workers or cores()
    each = max(mine.keys_memory_gb * GB, *(float(facts.key_memory()) for facts in found))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"{workers} workers may hold {workers * each / GB:.1f} GB of keys, and this machine has {memory / GB:.1f} GB"
    if workers * each > memory:
        yield Check("keys in memory", "warning", what, "lower server.keys_memory_gb, or server.workers")
    else:
        yield Check("keys in memory", "good", what)


def reach(settings: Settings, role: Role, peer: Role, programs: Sequence[Program]) -> Iterator[Check]:
    """The server, asked as a client asks. Bandwidth is not measured."""
    address = settings.address(peer)
    try:
        api = Api(address, client_context(settings.certificates.folder, role), ANSWER_SECONDS)
    except CertificateError:
        return  # said already
    try:
        started = time.perf_counter()
        health = api.ask("GET", "/v1/health")
        took = time.perf_counter() - started
        ahead = _ahead(api.date)
        about = api.ask("GET", "/v1/models")
    except PeerTimeout as error:
        fix = f"{error.remedy}; let firewalls pass TCP port {address.port}"
        yield Check(f"{peer}: reached", "bad", error.what, fix)
        return
    except PeerError as error:
        yield Check(f"{peer}: reached", "bad", error.what, error.remedy)
        return
    except SlotsBusy as busy:
        yield Check(f"{peer}: reached", "bad", "is busy, or stopping", f"ask again in {busy.retry_after:g} seconds")
        return
    yield Check(f"{peer}: reached", "good", f"{address}, a {peer} of this CA, HTTPS, TLS 1.3")
    if not health.get("healthy"):
        yield Check(f"{peer}: health", "bad", "says that it is not healthy", "see its log")
    yield version_check(peer, str(about.get("version", "")), my_version())
    if programs:
        yield from _same(peer, about, settings.client.folder, programs)
    if ahead is not None:
        yield clock_check(peer, ahead, took)
    what = f"{took * 1e3:.1f} ms a request, with its handshake"
    yield Check(f"{peer}: network", "good", what, figures={"request_s": took})


def _ahead(date: str | None) -> float | None:
    """Seconds by which the clock that wrote this Date header is ahead of ours, to the second."""
    try:
        return parsedate_to_datetime(date or "").timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def _same(peer: Role, about: dict[str, Any], folder: Path, programs: Sequence[Program]) -> Iterator[Check]:
    """Whether the server has these programs, with the same circuits."""
    try:
        theirs = [facts_from(item["facts"], secure=False) for item in about["models"]]
    except (KeyError, TypeError, CkksError):
        what = "its list of models cannot be read"
        yield Check(f"{peer}: programs", "bad", what, "install the same version on both sides")
        return
    hashes, served = {program.hash() for program in programs}, {facts.program for facts in theirs}
    yield programs_check(peer, len(hashes & served), len(hashes))
    try:
        mine = [facts for facts in _circuits(folder, "client", programs) if facts.program in served]
    except (ArtifactError, CkksError):
        return  # said already
    if not all(facts in theirs for facts in mine):
        what = "other parameters or rotations there"
        yield Check(f"{peer}: circuits", "bad", what, "give both sides the parts of one compilation")
