"""N parties and their dealer as processes of this machine, over mutual TLS 1.3 on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...protocols.channel import Meter
from ...protocols.crypten.versions import check_versions
from ...protocols.errors import BlindformerError
from ..certificates.issuing import make_certificates
from ..local.launcher import QUERY_ERRORS, LocalAnswer
from ..local.processes import START_SECONDS, LaunchError, Processes, Progress
from ..session.timings import Timings
from .roster import DEALER, Roster


@dataclass
class ManyLocalAnswer(LocalAnswer):
    """`timings`: of all parties together; `by_party`: of each."""

    by_party: dict[str, Timings] = field(default_factory=dict)


class ManyLocal(Processes):
    """A session of local processes, open until `close`. Use it as a context manager.

    Errors of all methods: LaunchError, which ends the session; and of `query` those of `QUERY_ERRORS`, which end that
    query alone. CryptenError at once, if CrypTen is not there.
    """

    module = "blindformer.parties.many.worker"

    def __init__(
        self,
        folder: Path | str,
        roster: Roster,
        *,
        threads: int = 1,
        timeout: float = 120,
        wait: float = 60,
        progress: Progress | None = None,
        length: int | None = None,
        first_party: bool = False,
    ) -> None:
        """Start the processes and set the session up. `wait`: seconds for the parties to find each other.

        `first_party`: INSECURE, party 0 is the dealer as well.
        """
        check_versions()
        super().__init__(progress)
        self.roster, self.timeout = roster, timeout
        self.setup_s, self.setup_bytes = 0.0, 0
        self._queries = 0
        self._reports: dict[str, dict[str, Any]] = {}
        try:
            certificates = self._scratch / "certificates"
            make_certificates(certificates, roles=(DEALER, *roster.names), days=1)
            config: dict[str, Any] = {
                **asdict(roster),
                "folder": str(Path(folder).absolute()),
                "certificates": str(certificates),
                "scratch": str(self._scratch),
                "timeout": timeout,
                "wait": wait,
                "threads": threads,
                "length": length,
                "first_party": first_party,
                "addresses": {},
            }
            for name in (*([] if first_party else [DEALER]), *roster.names):
                self._start(name, config)
                if name != roster.names[-1]:
                    port = self._take(name, ("port",), max(timeout, START_SECONDS))["port"]
                    config["addresses"][name] = ("127.0.0.1", port)
                if first_party and DEALER not in config["addresses"]:
                    port = self._take(name, (DEALER,), max(timeout, START_SECONDS))[DEALER]
                    config["addresses"][DEALER] = ("127.0.0.1", port)
            for name in roster.names:
                ready = self._take(name, ("ready",), max(2 * timeout, START_SECONDS) + wait)["ready"]
                self.setup_s = max(self.setup_s, ready["setup_s"])
                self.setup_bytes = max(self.setup_bytes, ready["setup_bytes"])
        except BaseException:
            self._end()
            raise

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> ManyLocalAnswer:
        """Run one query: every data owner is given its own inputs, and no others. (`more` is not used here.)"""
        roster = self.roster
        asker, recipient = roster.names[roster.asker], roster.names[roster.recipient_rank]
        if not self.open:
            raise LaunchError(asker, "the session is closed", "open a new one")
        try:
            if self.progress:
                self.progress("offline", 0, 1)
            owners = self._hand_out(inputs)
            reports = {asker: self._take(asker, ("answer", "refused"), 2 * self.timeout)}
            if "refused" not in reports[asker]:
                rest = [name for name in roster.names if name != asker]
                reports |= {name: self._take(name, ("answer",), 2 * self.timeout) for name in rest}
        except BaseException:
            self._end()
            raise
        if "refused" in reports[asker]:
            if owners > 1:
                self._end()  # the others hold inputs of a query that never was
            raise _failure(reports[asker]["refused"])
        answers = {name: report["answer"] for name, report in reports.items()}
        if "failed" in answers[recipient]:
            raise _failure(answers[recipient]["failed"])
        file = Path(answers[recipient]["outputs"])
        outputs = load_file(file)
        file.unlink()
        timings = {name: _timings(answer) for name, answer in answers.items()}
        others = {f"{name}_peak_rss_mb": found.peak_rss_mb for name, found in timings.items()}
        others["dealer_peak_rss_mb"] = max(answer["dealer_peak_rss_mb"] for answer in answers.values())
        return ManyLocalAnswer(outputs, _together(list(timings.values())), others, timings)

    def ahead(self, count: int) -> None:
        """Make the correlations of `count` queries now."""
        asker = self.roster.names[self.roster.asker]
        try:
            self._workers[asker].tell(ahead=count)
            self._take(asker, ("made",), 2 * self.timeout * count)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Say goodbye, wait a little, and end whoever is still there. Safe to call twice."""
        self._part(self.roster.names[self.roster.asker])

    def __enter__(self) -> ManyLocal:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.close()
        else:
            self._end()

    def _heard(self, role: str, report: dict[str, Any]) -> None:
        self._reports.setdefault(role, {}).update(report)

    def _take(self, role: str, names: tuple[str, ...], seconds: float) -> dict[str, Any]:
        """The next report of `role` with one of these names, which may have come while others were waited for."""
        if not any(name in self._reports.get(role, {}) for name in names):
            self._wait(role, names, seconds)
        return {name: self._reports[role].pop(name) for name in names if name in self._reports[role]}

    def _hand_out(self, inputs: Mapping[str, Tensor]) -> int:
        """Each owner's inputs in a file that it alone is told of. Returns the number of owners."""
        parts: dict[int, dict[str, Tensor]] = {self.roster.asker: {}}
        for name, value in inputs.items():
            parts.setdefault(self.roster.input_rank(name), {})[name] = value.contiguous().clone()
        for rank, part in parts.items():
            file = self._scratch / f"inputs-{self._queries}-{rank}.safetensors"
            save_file(part, file)
            self._workers[self.roster.names[rank]].tell(inputs=str(file))
        self._queries += 1
        return len(parts)


def _failure(failed: dict[str, str]) -> BlindformerError:
    return QUERY_ERRORS.get(failed["kind"], BlindformerError)(failed["what"])


def _timings(answer: dict[str, Any]) -> Timings:
    found = answer["timings"]
    return Timings(**{**found, "online": Meter(**found["online"])})


def _together(found: list[Timings]) -> Timings:
    """Of all parties: the slowest one's seconds, and all messages, each counted once, as sent."""
    online = Meter(sent=sum(each.online.sent for each in found), overhead=sum(each.online.overhead for each in found))
    return Timings(
        offline_s=max(each.offline_s for each in found),
        online_s=max(each.online_s for each in found),
        rounds=found[0].rounds,
        online=online,
        offline_bytes=sum(each.offline_bytes for each in found),
        peak_rss_mb=max(each.peak_rss_mb for each in found),
    )
