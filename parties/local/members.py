"""N parties and their dealer on this machine, over mutual TLS 1.3 on loopback.

All of them are `blindformer party`, each a process, with one settings file (service/local_party.py): CrypTen's
state belongs to a process, and the data may have several owners.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...models.artifacts import load_client, save
from ...models.compile import AnswerOutOfRange, Compiled
from ...protocols.channel import Meter
from ...protocols.crypten.versions import check_versions
from ..certificates.issuing import make_certificates
from ..launch.processes import START_SECONDS, LaunchError, Line, PartyProcesses, Progress
from ..launch.services import A_DAY
from ..service.local_options import LocalOptions
from ..session.parties import DEALER, Parties
from ..session.timings import Timings
from .launcher import LocalAnswer


@dataclass
class ManyLocalAnswer(LocalAnswer):
    """`timings`: of all parties together; `by_party`: of each."""

    by_party: dict[str, Timings] = field(default_factory=dict)


class ManyLocal(PartyProcesses):
    """A session of local processes, open until `close`. Use it as a context manager.

    Errors of all methods: LaunchError, which ends the session; and of `query` alone ProgramError, RangeError (wrong
    inputs) and AnswerOutOfRange. CryptenError at once, if CrypTen is not there.
    """

    def __init__(
        self,
        folder: Path | str | Compiled,
        roster: Parties,
        *,
        threads: int = 1,
        timeout: float = 120,
        wait: float = 60,
        progress: Progress | None = None,
        first_party: bool = False,
    ) -> None:
        """Start the processes and set the session up. `wait`: seconds for the parties to find each other.

        `first_party`: INSECURE, party 0 is the dealer as well.
        """
        check_versions()
        super().__init__()
        self.roster, self.timeout, self.progress = roster, timeout, progress
        self.setup_s, self.setup_bytes, self.open = 0.0, 0, False
        self._queries = 0
        try:
            folder = save(folder, self.scratch / "compiled") if isinstance(folder, Compiled) else Path(folder)
            self._part = load_client(folder).for_length()
            make_certificates(self.scratch / "certificates", roles=(DEALER, *roster.names), days=1)
            with ExitStack() as opened:
                listening = {name: opened.enter_context(self._listen(name)) for name in (DEALER, *roster.names[:-1])}
                sockets = {name: listener.fileno() for name, listener in listening.items()}
                file = self.scratch / "blindformer.toml"
                file.write_text(self._settings(folder.absolute(), sockets, max(wait, START_SECONDS)))
                options = LocalOptions(scratch=str(self.scratch), deals=first_party)
                more = ["--config", str(file), "--threads", str(threads), *options.words()]
                for name in roster.names if first_party else (*roster.names, DEALER):
                    heard = (name, DEALER) if first_party and name == roster.names[0] else (name,)
                    inherited = [sockets[other] for other in heard if other in sockets]
                    self._start(name, ["party", "--party", name, *more], inherited)
            for name in roster.names:
                ready = self._take(name, ("ready",), max(2 * timeout, START_SECONDS) + wait)
                self.setup_s = max(self.setup_s, ready["setup_s"])
                self.setup_bytes = max(self.setup_bytes, ready["setup_bytes"])
            self.open = True
        except BaseException:
            self.close(0)
            raise

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> ManyLocalAnswer:
        """Run one query: every data owner is given its own inputs, and no others. (`more` is not used here.)"""
        roster = self.roster
        asker, recipient = roster.names[roster.asker], roster.names[roster.recipient_rank]
        if not self.open:
            raise LaunchError(asker, "the session is closed", "open a new one")
        self._part.encode_inputs(inputs)  # what is wrong with them is found before anybody is told of them
        try:
            if self.progress:
                self.progress("offline", 0, 1)
            self._hand_out(inputs)
            order = [asker, *(name for name in roster.names if name != asker)]
            answers = {name: self._answer(name) for name in order}
        except BaseException:
            self.close(0)
            raise
        if "out_of_range" in answers[recipient]:
            raise AnswerOutOfRange(answers[recipient]["out_of_range"])
        file = Path(answers[recipient]["outputs"])
        outputs = load_file(file)
        file.unlink()
        timings = {name: _timings(answer) for name, answer in answers.items()}
        others = {f"{name}_peak_rss_mb": found.peak_rss_mb for name, found in timings.items()}
        others["dealer_peak_rss_mb"] = max(answer["dealer_peak_rss_mb"] for answer in answers.values())
        return ManyLocalAnswer(outputs, _together(list(timings.values())), others, timings)

    def close(self, seconds: float = 1.0) -> None:
        self.open = False
        super().close(seconds)

    def __enter__(self) -> ManyLocal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _settings(self, folder: Path, sockets: Mapping[str, int], wait: float) -> str:
        """The deployment's blindformer.toml."""
        roster = self.roster
        sections: dict[str, dict[str, Any]] = {
            "session": {"protocol": "crypten", "timeout": float(self.timeout)},
            "certificates": {"folder": str(self.scratch / "certificates")},
            "parties.dealer": {"address": str(self.addresses[DEALER])},
            "dealer": {"listen": f"fd:{sockets[DEALER]}", "idle": A_DAY},
            "crypten": {"wait": wait},
        }
        for name in roster.names:
            owns = [item for item, owner in roster.owners.items() if owner == name] + ["data"] * (name == roster.data)
            said = {"folder": str(folder), "owns": owns, "answers": name == roster.recipient}
            if name in sockets:
                said |= {"address": str(self.addresses[name]), "listen": f"fd:{sockets[name]}"}
            sections[f"crypten.parties.{name}"] = said
        # Strings, numbers and lists are the same in TOML and JSON.
        lines = [
            [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in said.items())]
            for name, said in sections.items()
        ]
        return "\n".join(line for section in lines for line in section) + "\n"

    def _answer(self, name: str) -> Line:
        while True:
            line = self._take(name, ("answered", "progress"), 2 * self.timeout)
            if "progress" not in line:
                return line
            if self.progress:
                self.progress(*line["progress"])

    def _hand_out(self, inputs: Mapping[str, Tensor]) -> None:
        """Each owner's inputs in a file that it alone is told of."""
        parts: dict[int, dict[str, Tensor]] = {self.roster.asker: {}}
        for name, value in inputs.items():
            parts.setdefault(self.roster.input_rank(name), {})[name] = value.contiguous().clone()
        for rank, part in parts.items():
            file = self.scratch / f"inputs-{self._queries}-{rank}.safetensors"
            save_file(part, file)
            self._running[self.roster.names[rank]].tell(str(file))
        self._queries += 1


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
