"""N parties and their dealer on this machine, over mutual TLS 1.3 on loopback.

All of them are `blindformer party`, each a process, with one settings file (service/party_runner.py): CrypTen's
state belongs to a process, and the data may have several owners.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...models.artifacts import load_client, save
from ...models.compile import AnswerOutOfRange, Compiled
from ...protocols.channel import Meter
from ...protocols.crypten import PROTOCOL
from ...protocols.crypten.versions import check_versions
from ...protocols.operations.reveal import RevealedRows, rows_of
from ..certificates.issuing import make_certificates
from ..launch.processes import A_DAY, START_SECONDS, LaunchError, Line, PartyProcesses
from ..service.local_options import LocalOptions
from ..service.party_runner import PASS
from ..session.online import Answer, Progress, Timings
from ..session.parties import DEALER, Parties
from .session import LocalSession
from .talk import conversation_on

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation


@dataclass
class PartiesAnswer(Answer):
    """`timings`: of all parties together; `by_party`: of each."""

    by_party: dict[str, Timings] = field(default_factory=dict)


class LocalNParty(PartyProcesses, LocalSession):
    """A session of local processes.

    Errors of all methods: LaunchError, which ends the session; and of `query` alone ProgramError, RangeError (wrong
    inputs) and AnswerOutOfRange. CryptenError at once, if CrypTen is not there.
    """

    def __init__(
        self,
        folder: Path | str | Compiled,
        parties: Parties,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        first_party: bool = False,
    ) -> None:
        """Start the processes and set the session up. `first_party`: INSECURE, party 0 is the dealer as well."""
        check_versions()
        super().__init__()
        self.parties, self.timeout, self.progress = parties, timeout, progress
        self._queries = 0
        try:
            folder = save(folder, self.scratch / "compiled") if isinstance(folder, Compiled) else Path(folder)
            self._part = load_client(folder).for_length()
            make_certificates(self.scratch / "certificates", roles=(DEALER, *parties.names), days=1)
            with ExitStack() as opened:
                listening = {name: opened.enter_context(self._listen(name)) for name in (DEALER, *parties.names[:-1])}
                sockets = {name: listener.fileno() for name, listener in listening.items()}
                file = self.scratch / "blindformer.toml"
                file.write_text(self._settings(folder.absolute(), sockets))
                options = LocalOptions(scratch=str(self.scratch), deals=first_party)
                own = {"--config": file, "--threads": threads, "--wait": START_SECONDS}
                more = [*map(str, chain.from_iterable(own.items())), *options.words()]
                for name in parties.names if first_party else (*parties.names, DEALER):
                    heard = (name, DEALER) if first_party and name == parties.names[0] else (name,)
                    inherited = [sockets[other] for other in heard if other in sockets]
                    self._start(name, ["party", "--party", name, *more], inherited)
            for name in parties.names:
                ready = self._take(name, ("ready",), 2 * max(timeout, START_SECONDS))
                self.setup_s = max(self.setup_s, ready["setup_s"])
                self.setup_bytes = max(self.setup_bytes, ready["setup_bytes"])
            self.open = True
        except BaseException:
            self.close(0)
            raise

    def query(self, inputs: Mapping[str, Tensor], more: bool = False, part: str = "") -> PartiesAnswer:
        """Run one query: every data owner is given its own inputs, and no others. (`more` is not used here.) `part`:
        which pass of a conversation it is."""
        parties = self.parties
        asker, recipient = parties.names[parties.asker], parties.names[parties.recipient_rank]
        if not self.open:
            raise LaunchError(asker, "the session is closed", "open a new one")
        encoder = self._part.parts[part] if part else self._part
        encoder.encode_inputs(inputs)  # what is wrong with them is found before anybody is told of them
        try:
            if self.progress:
                self.progress("offline", 0, 1)
            self._hand_out(inputs, part)
            order = [asker, *(name for name in parties.names if name != asker)]
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
        return PartiesAnswer(outputs, _together(list(timings.values())), others, timings)

    def close(self, seconds: float = 1.0) -> None:
        self.open = False
        super().close(seconds)

    def _settings(self, folder: Path, sockets: Mapping[str, int]) -> str:
        """The deployment's blindformer.toml."""
        parties = self.parties
        sections: dict[str, dict[str, Any]] = {
            "session": {"protocol": PROTOCOL.name, "timeout": float(self.timeout)},
            "certificates": {"folder": str(self.scratch / "certificates")},
            "parties.dealer": {"address": str(self.addresses[DEALER])},
            "dealer": {"listen": f"fd:{sockets[DEALER]}", "idle": A_DAY},
        }
        for name in parties.names:
            owns = [item for item, owner in parties.owners.items() if owner == name] + ["data"] * (name == parties.data)
            said = {"folder": str(folder), "owns": owns, "answers": name == parties.recipient}
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

    def _hand_out(self, inputs: Mapping[str, Tensor], pass_name: str) -> None:
        """Each owner's inputs in a file that it alone is told of."""
        parts: dict[int, dict[str, Tensor]] = {self.parties.asker: {}}
        for name, value in inputs.items():
            parts.setdefault(self.parties.input_rank(name), {})[name] = value.contiguous().clone()
        for rank, part in parts.items():
            file = self.scratch / f"inputs-{self._queries}-{rank}.safetensors"
            save_file(part, file, {PASS: pass_name})
            self._running[self.parties.names[rank]].send(str(file))
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


start_first_party = partial(LocalNParty, first_party=True)
"""INSECURE: the first party is the dealer, too."""


# A conversation: passes are queries of the session, which keeps the state.

Told = Callable[[str, PartiesAnswer], None]


class MembersTalk:
    """Runs the passes of one conversation. An error ends the session, and its state; the next pass starts the parties
    again, and what was said is read again under fresh masks."""

    def __init__(self, folder: Path, start: Callable[[], LocalNParty], told: Told | None) -> None:
        self.conversation = conversation_on(load_client(folder), self._run, folder=folder)
        self._start, self._told, self.session = start, told, start()

    def _run(
        self, part: str, inputs: Mapping[str, Tensor], following: object, revealed: RevealedRows
    ) -> Mapping[str, Tensor]:
        """N parties reveal all rows."""
        if not self.session.open:
            self.session = self._start()
            self.conversation.rows.read_again()
        try:
            answer = self.session.query(inputs, part=part)
        except BaseException:
            self.session.close()  # else its state would not be what the conversation takes it for
            raise
        if self._told:
            self._told(part, answer)
        return {name: rows_of(value, revealed) for name, value in answer.outputs.items()}


@contextmanager
def conversation(
    folder: str | Path, told: Told | None = None, *, parties: Parties, **options: Any
) -> Iterator[Conversation]:
    """With a language model in the first party's hands; the party that asks talks. `options`: those of LocalNParty.

    Errors: ClientError, LaunchError, ArtifactError.
    """
    talk = MembersTalk(Path(folder), partial(LocalNParty, Path(folder), parties, **options), told)
    try:
        yield talk.conversation
    finally:
        talk.session.close()
