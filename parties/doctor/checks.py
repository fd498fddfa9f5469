"""Checks of `blindformer doctor` (examine.py), and those that a protocol adds: of its files, and of its peers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ...cores import cores
from ...models.artifacts import ArtifactError
from ...models.artifacts.circuits import read_circuit
from ...models.artifacts.layout import find_part
from ...models.artifacts.writing import text_length
from ...models.delegated.manifest import Manifest
from ...models.program.pricing import price
from ...models.program.program import Program
from ...protocols.ckks.facts import CircuitNeeds, facts_from, most
from ...protocols.ckks.parameters import CkksError
from ...protocols.errors import BlindformerError, PeerError, PeerTimeout
from ...protocols.wire import wire_bytes
from ..certificates.tls_folder import CertificateError, client_context
from ..config import Address, Role, Settings
from ..session.preprocessing_store import LEDGER, PreprocessingStore, StoreError
from ..transport.handshake import PeerFacts, Probed, my_facts, probe
from ..transport.tls import dial

Status = Literal["good", "warning", "bad"]
ANSWER_SECONDS = 10.0  # for a peer to answer at all
CLOCK_SECONDS = 60.0
STORE_QUERIES = 10  # room that a store should have, in queries
ROWS = 128  # of a pass whose corrections are stored: tokens of a text
PROGRAMS_ASKED = 64
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Check:
    """One line. `figures`: the numbers in it, for programs."""

    name: str
    status: Status
    found: str
    fix: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def failed(name: str, error: BlindformerError, fix: str = "") -> Check:
    """A bad check from an error, with the error's remedy, or `fix` where it names none."""
    what, _, remedy = str(error).partition("; ")
    return Check(name, "bad", what, remedy or fix)


def shown(path: Path) -> str:
    """A path as a reader would write it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def room(name: str, folder: Path, each: int, key: str, wanted: int = 1) -> Check:
    """`folder` has room for `wanted` things of `each` bytes. `key`: the setting that names the folder."""
    parent = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Check(name, "bad", f"{parent} cannot be written", f"give this user the folder, or set {key}")
    free = shutil.disk_usage(parent).free
    figures = {"free_bytes": free, "bytes_each": each}
    what = f"{shown(folder)}: {free / GB:.1f} GB free"
    if each * wanted <= free:
        return Check(name, "good", what, figures=figures)
    what += f"; {wanted} need {each * wanted / GB:.1f} GB"
    return Check(name, "bad" if free < each else "warning", what, f"make room, or set {key}", figures)


def version_check(peer: str, theirs: str, mine: str) -> Check:
    if theirs == mine:
        return Check(f"{peer}: version", "good", mine)
    return Check(f"{peer}: version", "bad", f"{theirs} there, {mine} here", "install the same version on both sides")


def programs_check(peer: str, known: int, mine: int) -> Check:
    """The peer knows `known` of our `mine` programs."""
    fix = "" if known == mine else "give both sides the parts of one compilation, and the same topology and audits"
    return Check(f"{peer}: programs", "bad" if fix else "good", f"{known} of {mine} known there", fix)


def clock_check(peer: str, ahead: float, trip: float) -> Check:
    """`ahead`: seconds that the peer's clock is ahead of ours, known to within `trip`."""
    off = abs(ahead) > CLOCK_SECONDS + trip
    what = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's" if off else "as here"
    fix = "set both clocks (timedatectl): certificates are good for a time" if off else ""
    return Check(f"{peer}: clock", "warning" if off else "good", what, fix, {"clock_s": ahead})


def not_reached(peer: Role, address: Address, error: PeerError, more: str = "") -> Check:
    """`more`: what else may be wrong, of a peer that was connected to."""
    if not more and isinstance(error, PeerTimeout):
        more = f"let firewalls pass TCP port {address.port}"
    return Check(f"{peer}: reached", "bad", error.what, "; ".join(filter(None, (error.remedy, more))))


def compiled_programs(settings: Settings, role: Role) -> tuple[list[Program], Check]:
    """This party's programs, as its topology runs them."""
    if role == "dealer":
        return [], Check("artifacts", "good", "a dealer needs none: it is told each program by the server")
    from ...models.artifacts import load_programs
    from ..session.rendezvous_two import agreed_program

    folder = getattr(settings, role).folder
    try:
        by_length = load_programs(folder)
    except BlindformerError as error:
        return [], failed("artifacts", error, "compile the model, and copy this party's part here")
    try:
        programs = [agreed_program(program, settings.session) for program in by_length.values()]
    except BlindformerError as error:
        return [], failed("artifacts", error, "leave session.audits out at all parties")
    lengths = ", ".join(str(length) for length in by_length if length)
    what = f"{shown(folder)}: {f'lengths {lengths}' if lengths else 'one program'}"
    return programs, Check("artifacts", "good", what, figures={"programs": [program.hash() for program in programs]})


@dataclass(frozen=True)
class ProtocolChecks:
    """What a protocol adds to the checks of a party.

    files   (settings, role, programs): what the party keeps beside its part of the model
    reach   (settings, role, peer, programs): a peer that the party dials
    programs  (settings, role): this party's programs, which have a hash, and the check of its part of the model
    """

    files: Callable[[Settings, Role, Sequence[Any]], Iterator[Check]]
    reach: Callable[[Settings, Role, Role, Sequence[Any]], Iterator[Check]]
    programs: Callable[[Settings, Role], tuple[list[Any], Check]] = compiled_programs


# Sessions with a dealer.


def _session_files(settings: Settings, role: Role, programs: Sequence[Program]) -> Iterator[Check]:
    part, prices = getattr(settings, role), [price(program) for program in programs]
    yield from _store(part.store, role, max((priced.dealt_bytes for priced in prices), default=0))
    if role == {"dealer": "client", "helper": "helper"}.get(settings.session.topology):
        yield room("cache", part.cache, max(priced.setup_bytes for priced in prices), f"{role}.cache")


def _store(folder: Path | None, role: Role, query: int, bound: bool = False) -> Iterator[Check]:
    """`query`: bytes that the server stores of one; a client stores a key."""
    if folder is not None:
        yield room("store", folder, query if role == "server" else 4096, f"{role}.store", STORE_QUERIES)
        if (folder / LEDGER).is_file():
            yield _ledger(folder, bound)


def _ledger(folder: Path, bound: bool) -> Check:
    try:
        left = PreprocessingStore(folder, bound=bound, must_exist=True).left()
    except StoreError as error:
        return failed(
            "ledger", error, "move the folder away, and the peer's, and make new ones: `blindformer precompute`"
        )
    return Check("ledger", "good", f"preprocessed correlations ready: {left}", figures={"left": left})


def _session_reach(settings: Settings, role: Role, peer: Role, programs: Sequence[Program]) -> Iterator[Check]:
    address = settings.address(peer)
    try:
        context = client_context(settings.certificates.folder, role)
    except CertificateError:
        return  # the certificate's own check has said it
    mine = my_facts(role, settings.shared_hash(), [program.hash() for program in programs[:PROGRAMS_ASKED]])
    dialled = False
    try:
        with dial(*address, context, peer, timeout=ANSWER_SECONDS, handshake_seconds=ANSWER_SECONDS) as channel:
            dialled = True
            answer = probe(channel, mine)
    except PeerError as error:
        more = "or it serves another protocol: see [session] there" if dialled else ""
        yield not_reached(peer, address, error, more)
        return
    yield Check(f"{peer}: reached", "good", f"{address}, a {peer} of this CA, TLS 1.3")
    yield from _agreement(peer, mine, answer)
    what = f"{answer.rtt_s * 1e3:.1f} ms there and back; measure its bandwidth with iperf3"
    yield Check(f"{peer}: network", "good", what, figures={"rtt_s": answer.rtt_s})


def _agreement(peer: Role, mine: PeerFacts, answer: Probed) -> Iterator[Check]:
    theirs = answer.facts
    yield version_check(peer, theirs.blindformer, mine.blindformer)
    if mine.config and theirs.config:
        same = mine.config == theirs.config
        what = "the same protocol and topology" if same else "another protocol or topology there"
        fix = "" if same else "give all parties the same [session]; flags count too"
        yield Check(f"{peer}: config", "good" if same else "bad", what, fix)
    if mine.programs and peer in ("server", "helper"):
        yield programs_check(peer, len(theirs.programs), len(mine.programs))
    yield clock_check(peer, answer.clock_s, answer.rtt_s)


SESSIONS = ProtocolChecks(_session_files, _session_reach)


# Delegated layers.


def _delegated_programs(settings: Settings, role: Role) -> tuple[list[Manifest], Check]:
    from ...models.delegated.weights import load_weights

    folder = getattr(settings, role).folder
    try:
        manifest, integers = load_weights(folder or Path(), role)
    except BlindformerError as error:
        return [], failed("artifacts", error, "prepare the model, and copy this party's part here")
    what = f"{shown(folder)}: {len(integers)} groups of public layers"
    return [manifest], Check("artifacts", "good", what, figures={"programs": [manifest.digest]})


def _delegated_files(settings: Settings, role: Role, programs: Sequence[Manifest]) -> Iterator[Check]:
    (manifest,) = programs
    row = sum(layer.outputs for group in manifest.layer_groups for layer in group.layers)
    if role != "dealer":
        bytes = wire_bytes(manifest.ring) * row * ROWS
        yield from _store(getattr(settings, role).store, role, bytes, bound=role == "client")


DELEGATED = ProtocolChecks(_delegated_files, _session_reach, _delegated_programs)


# Encrypted queries.


def _circuits(settings: Settings, role: Role) -> tuple[list[CircuitNeeds], Check]:
    folder, needs = getattr(settings, role).folder, list[CircuitNeeds]()
    programs, check = compiled_programs(settings, role)
    if not programs:
        return [], check
    try:
        for program in programs:
            circuit = read_circuit(find_part(folder, role), text_length(program))
            if circuit is None:
                remedy = "compile a model that was distilled with plan he"
                raise CkksError(f"{folder}: is not compiled for encrypted queries; {remedy}")
            needs.append(circuit.facts)
    except (ArtifactError, CkksError) as error:
        return [], failed("circuits", error, "compile again")
    return needs, check


def _encrypted_files(settings: Settings, role: Role, needs: Sequence[CircuitNeeds]) -> Iterator[Check]:
    if find_spec("tenseal") is None:
        yield Check("libraries", "bad", "tenseal missing", "run: pip install 'blindformer[he]'")
    try:
        for facts in needs:
            facts_from(facts.to_json())
    except CkksError as error:
        yield failed("circuits", error, "compile again")
        return
    sizes = ", ".join(
        f"N = {facts.parameters.degree} for {facts.texts} a query, keys {most(facts.key_items()) / MB:.0f} MB at most"
        for facts in needs
    )
    yield Check("circuits", "good", sizes, figures={"key_bytes": [most(facts.key_items()) for facts in needs]})
    if role == "server":
        yield from _room_for_keys(settings, needs)


def _room_for_keys(settings: Settings, needs: Sequence[CircuitNeeds]) -> Iterator[Check]:
    mine, largest = settings.server, max(most(facts.key_items()) for facts in needs)
    if mine.keys_gb * GB < largest:
        what = f"server.keys_gb = {mine.keys_gb:g}, and one client's may take {largest / GB:.2f} GB"
        yield Check("keys on disk", "bad", what, "raise it")
    else:
        clients = int(mine.keys_gb * GB // largest)
        yield room("keys on disk", Path(tempfile.gettempdir()), largest, "TMPDIR", clients)
    workers = mine.workers or cores()
    each = mine.keys_memory_gb * GB + max(facts.key_memory() for facts in needs)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"sessions may hold {workers * each / GB:.1f} GB of keys, and this machine has {memory / GB:.1f} GB"
    if workers * each > memory:
        yield Check("keys in memory", "warning", what, "lower server.keys_memory_gb, or server.workers")
    else:
        yield Check("keys in memory", "good", what)


ENCRYPTED_QUERIES = ProtocolChecks(_encrypted_files, _session_reach, _circuits)
