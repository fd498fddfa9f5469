"""The fault campaign: SIGKILL for each party at random instants of a session's life, and what becomes of the others.

    python -m bench.faults --instants 50 --seed 0
    python -m bench.faults --life conversations --instants 20
    python -m bench.faults --dealer none --instants 20

Real processes over mutual TLS on loopback, with a small real model. README.md says what is promised, and counted.
"""

import argparse
import itertools
import random
import signal
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
from blindformer.parties.launch import NO_DEALER
from blindformer.protocols import errors
from blindformer.tests.shared.clients import ClientProcess
from blindformer.tests.shared.deployment import Deployment, Running
from blindformer.tests.shared.processes import PROCESSES
from blindformer.tests.shared.site import Site, deploy
from rich.table import Table

from .fault_lives import LIVES, Life
from .harness import BenchError, Report, Say, carry_out, columns, parser
from .ledgers import Audit, audit

PROCESSES.set_forkserver_preload(["blindformer.tests.shared.clients", f"{__package__}.fault_lives"])
SESSIONS = ("server's session", "dealer's session")
VICTIMS = (*SESSIONS, "server", "dealer", "client")
TYPED = {"SlotsBusy", "StoreError", "CorrelationError", "SeedError"} | {
    name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, errors.PeerError)
}
REHEARSALS = 3
TRIES = 20  # until there is somebody to kill at the instant that was drawn
PATIENCE = 60.0  # seconds for what no promise bounds: starting a process on a busy machine
GLANCE = 0.005  # seconds between two looks at the processes


@dataclass
class Tally:
    """What the kills of one victim did.

    survived   every other party ended its session with a typed error (or to its end) in time, left no process, and the
               next queries were answered right
    unharmed   the client's session went on to its end, although its victim was killed
    lost       queries without an answer
    slowest_s  from the kill until the last process of a broken session was gone
    """

    victim: str
    tried: int = 0
    survived: int = 0
    unharmed: int = 0
    asked: int = 0
    lost: int = 0
    wrong: int = 0
    orphans: int = 0
    slowest_s: float = 0.0


class Killer:
    """Runs the cases of a campaign one after the other, in one deployment."""

    def __init__(self, life: Life, deployment: Deployment, site: Site, folder: Path, seed: int) -> None:
        self.life, self.deployment, self.site, self.folder = life, deployment, site, folder
        self.random = random.Random(seed)
        self.lengths: dict[str, float] = {}  # of the parts of a life, seconds
        self.answered = 0  # since the beginning, right or wrong
        self.tallies: list[Tally] = []
        self.parts = dict.fromkeys(life.parts, 0)  # kills in each
        self.broken: list[str] = []  # each promise that was not kept, where and when
        self._case = ""

    @property
    def store(self) -> Path:
        return self.folder / "client-store"

    def rehearse(self) -> None:
        """Lives without a fault: how long each part takes."""
        seen: dict[str, list[float]] = {name: [] for name in self.life.parts}
        for number in range(REHEARSALS + 1):
            self._case = f"rehearsal {number}"
            client = ClientProcess(self.site, partial(self.life.live, store=self.store))
            client.finish(PATIENCE)
            self._count(client, Tally(""))
            self._check_client(client, may_fail=False)
            times = [(event.get("name"), event["at"]) for event in client.events if event["event"] in ("part", "end")]
            if number:  # the first one meets cold caches
                for (name, at), (_, end) in itertools.pairwise(times):
                    seen[str(name)].append(end - at)
            client.close()
        self.lengths = {name: statistics.median(times) if times else 0.0 for name, times in seen.items()}

    def run(self, instants: int, say: Say) -> None:
        """As many kills of each victim, in turn."""
        victims = [victim for victim in VICTIMS if self.site.dealer or not victim.startswith("dealer")]
        self.tallies = [Tally(victim) for victim in victims]
        plans = {victim: _parts(self.life, victim, instants, self.random) for victim in victims}
        for number in range(instants):
            for tally in self.tallies:
                say(f"{number + 1} of {instants}: {tally.victim}")
                part = plans[tally.victim][number]
                for _ in range(TRIES):
                    if self.kill(tally, part):
                        self.parts[part] += 1
                        break
                else:
                    self._break(f"nobody to kill, in {TRIES} lives")

    def kill(self, tally: Tally, part: str) -> bool:
        """One case. False if there was nobody to kill at that instant."""
        self._case = f"{tally.victim} killed in {part!r}"
        before, fraction = len(self.broken), self.random.random()
        marks = {role: len(running.log) for role, running in self._services()}
        client = ClientProcess(self.site, partial(self.life.live, store=self.store))
        while (event := client.listen(PATIENCE)) is not None and event.get("name") != part:
            pass
        time.sleep(fraction * self.lengths[part])
        victim = self._choose(tally.victim, client)
        if victim is None:
            client.finish(PATIENCE)
            self._count(client, tally)
            self._check_client(client, may_fail=False)
            client.close()
            return False
        killed = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        whole, may_fail = tally.victim in ("server", "dealer"), not self.life.must_end(part)
        dead = tally.victim == "client"
        patient = bool(self.life.goes_on) and not dead
        if not patient:
            self._wait_for_all(client, killed, tally)
        elif whole:
            self._wait_for_sessions(killed, tally)
            tally.slowest_s = max(tally.slowest_s, time.monotonic() - killed)
            self._restart(tally.victim)
            marks[tally.victim] = 0
        client.finish(PATIENCE)
        self._wait_for_sessions(time.monotonic(), tally)
        tally.tried += 1
        self._count(client, tally)
        self._check_client(client, may_fail and not dead, dead)
        self._check_logs(marks, victim.pid)
        if client.ending is not None and client.ending["event"] == "end":
            tally.unharmed += 1
        client.close()
        if whole and not patient:
            self._restart(tally.victim)
        self._ask_afterwards(tally)
        tally.survived += len(self.broken) == before
        return True

    def _restart(self, role: str) -> None:
        self._service(role).wait()
        self.deployment.start(role)

    def _choose(self, victim: str, client: ClientProcess) -> psutil.Process | None:
        try:
            if victim == "client":
                return psutil.Process(client.pid)
            if victim not in SESSIONS:
                return psutil.Process(self._service(victim).pid)
        except psutil.NoSuchProcess:
            return None
        children = self._service(victim.removesuffix("'s session")).children()
        return self.random.choice(children) if children else None

    def _wait_for_all(self, client: ClientProcess, killed: float, tally: Tally) -> None:
        """Until every process of the session is gone, or too late. (A connection that the kernel still holds for a dead
        client may become a session after that, and end at once: the next round's wait is for it, too.)"""
        end = killed + self.site.timeout + 1.0
        while (left := self._sessions()) or client.process.exitcode is None:
            if client.listen(GLANCE if client.process.exitcode is None else 0.0) is None and left:
                time.sleep(GLANCE)
            ending = client.ending
            if ending is not None and ending["event"] == "end":
                end = max(end, time.monotonic() + 1.0)  # it was not harmed, and may take the time it takes
            if time.monotonic() > end:
                break
        gone = time.monotonic()
        client.finish(1.0)
        if client.ending is None or client.ending["event"] != "end":
            tally.slowest_s = max(tally.slowest_s, gone - killed)
        if client.process.exitcode is None:
            self._break(f"the client was still there {gone - killed:.1f} s later")
        self._end(left, killed, tally)

    def _wait_for_sessions(self, since: float, tally: Tally) -> None:
        """The same, of a client that goes on."""
        while (left := self._sessions()) and time.monotonic() < since + self.site.timeout + 1.0:
            time.sleep(GLANCE)
        self._end(left, since, tally)

    def _end(self, left: list[psutil.Process], since: float, tally: Tally) -> None:
        if left:
            whole = tally.victim in ("server", "dealer")
            what = [f"{process.pid} ({process.name()})" for process in left]
            finding = f"{'orphans' if whole else 'sessions'} {time.monotonic() - since:.1f} s later"
            self._break(f"{finding}: {', '.join(what)}")
            tally.orphans += len(left)
            for process in left:
                process.kill()

    def _sessions(self) -> list[psutil.Process]:
        """All processes of the deployment but the supervisors that live: found by their working folder, so that none is
        missed because its parent is gone."""
        services = {running.pid for _, running in self._services()}
        processes = []
        for process in psutil.process_iter():
            try:
                if (
                    process.pid not in services
                    and process.status() != psutil.STATUS_ZOMBIE
                    and process.cwd() == str(self.deployment.folder)
                ):
                    processes.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return processes

    def _ask_afterwards(self, tally: Tally) -> None:
        client = ClientProcess(self.site, partial(self.life.afterwards, store=self.store))
        client.finish(PATIENCE)
        self._count(client, tally)
        self._check_client(client, may_fail=False)
        client.close()

    def _count(self, client: ClientProcess, tally: Tally) -> None:
        asked = sum(event["event"] == "asked" for event in client.events)
        rights = [event["right"] for event in client.events if event["event"] == "answered"]
        tally.asked += asked
        tally.lost += asked - len(rights)
        tally.wrong += rights.count(False)
        self.answered += len(rights)
        if False in rights:
            self._break("a wrong answer")

    def _check_client(self, client: ClientProcess, may_fail: bool, dead: bool = False) -> None:
        ending = client.ending
        if ending is None:
            if not dead:
                self._break(f"the client ended with code {client.process.exitcode}, and without a word")
        elif ending["event"] == "bug" or (ending["event"] == "error" and ending["kind"] not in TYPED):
            self._break(f"the client failed: {ending.get('kind', '')} {ending['what']}")
        elif ending["event"] == "error" and not (may_fail or dead):
            self._break(f"the client was not served: {ending['what']}")
        elif ending["event"] == "error" and ending["kind"] == "CorrelationError":
            self._break(f"a correlation was used again: {ending['what']}")

    def _check_logs(self, marks: dict[str, int], victim: int) -> None:
        """No service logged anything but typed errors, and the one death that was ours."""
        for role, running in self._services():
            for line in running.log[marks[role] :]:
                bad = line["event"] in ("session-failed", "refused") and line.get("kind") not in TYPED
                bad |= line.get("kind") == "CorrelationError"
                bad |= line["event"] == "child-killed" and line.get("pid") != victim
                if bad:
                    self._break(f"the {role} logged {line}")
            if running.noise:
                self._break(f"the {role} wrote {running.noise[-20:]}")
                running.noise.clear()

    def _break(self, what: str) -> None:
        self.broken.append(f"{self._case}: {what}")

    def _service(self, role: str) -> Running:
        return self.deployment.server if role == "server" else self.deployment.dealer

    def _services(self) -> list[tuple[str, Running]]:
        return [(role, self._service(role)) for role in self.deployment.roles]


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """The whole campaign. Errors: BlindformerError, AssertionError if the services do not even start."""
    started, life, dealt = time.monotonic(), LIVES[chosen.life], chosen.dealer != NO_DEALER
    if not dealt and life.goes_on:
        raise BenchError(f"--life {chosen.life}: conversations take a dealer; leave --dealer {NO_DEALER} out")
    with tempfile.TemporaryDirectory(prefix="blindformer-faults-") as name:
        folder = Path(name)
        say("compile")
        life.compile(folder / "compiled")
        store = folder / "server-store"
        with deploy(folder, server={"store": store}, timeout=chosen.timeout, dealt=dealt) as (deployment, site):
            killer = Killer(life, deployment, site, folder, chosen.seed)
            say("rehearse")
            killer.rehearse()
            if not killer.broken:
                killer.run(chosen.instants, say)
            for _, running in killer._services():
                running.stop()
            audited = audit(store, killer.store, killer.answered) if killer.tallies else Audit()
    return {
        **{name: getattr(chosen, name) for name in ("life", "dealer", "instants", "seed")},
        "timeout_s": chosen.timeout,
        "tallies": [asdict(tally) for tally in killer.tallies],
        "parts": killer.parts,
        "used": audited.used,
        "reused": len(audited.reused),
        "broken": [*killer.broken, *audited.reused, *audited.damaged],
        "seconds": time.monotonic() - started,
    }


def _parts(life: Life, victim: str, instants: int, generator: random.Random) -> list[str]:
    """As many parts of a life, each as often as any other, in random order. A dealer's session is in some of them."""
    parts, (first, last) = list(life.parts), life.dealt
    if victim == "dealer's session":
        parts = parts[parts.index(first) : parts.index(last) + 1]
    drawn: list[str] = []
    while len(drawn) < instants:
        generator.shuffle(parts)
        drawn += parts
    return drawn[:instants]


def show(report: Report) -> list[Table | str]:
    which = report["life"] + (", no dealer" if report["dealer"] == NO_DEALER else "")
    title = f"{which}: SIGKILL at {report['instants']} instants each, seed {report['seed']}"
    names = ("tried", "survived", "unharmed", "queries", "lost", "wrong", "orphans", "slowest end")
    table = columns(f"{title}, timeout {report['timeout_s']:g} s", "killed", *names)
    for tally in report["tallies"]:
        victim, *counts, slowest = tally.values()
        table.add_row(victim, *map(str, counts), f"{slowest:.2f} s")
    where = ", ".join(f"{name} {count}" for name, count in report["parts"].items())
    used = f"correlations used {report['used']}, reused {report['reused']}"
    summary = f"{used}; {report['seconds'] / 60:.1f} minutes; kills by part: {where}"
    return [table, summary, *(f"broken: {what}" for what in report["broken"])]


def main(arguments: list[str] | None = None) -> int:
    options = parser("faults", "Kill each party, again and again.")
    options.add_argument("--life", choices=list(LIVES), default="queries", help="that is broken off (default queries)")
    options.add_argument("--dealer", choices=[NO_DEALER], help="none: the two parties do without (default: with one)")
    options.add_argument("--instants", type=int, default=50, help="kills of each victim (default 50)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--timeout", type=float, default=10, help="seconds that a party may be silent (default 10)")

    def broken(report: Report) -> str:
        return f"{len(report['broken'])} promises were not kept" if report["broken"] else ""

    return carry_out(options, arguments, measure, show, broken=broken)


if __name__ == "__main__":
    raise SystemExit(main())
