"""One of N parties of protocol crypten, as a process of its own, for one session.

`blindformer serve --party` runs it for a person, and with `--local` for the program that started it
(local_n_party.py). It is no service: session/rendezvous_n.py says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from operator import length_hint
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...models.compile import AnswerOutOfRange, decode_outputs
from ...models.loading.answers import read_answer
from ...models.loading.huggingface import InputError
from ...protocols.crypten import PROTOCOL
from ...protocols.crypten.versions import check_versions
from ...protocols.devices import find_device
from ...protocols.errors import BlindformerError
from ..config import Address, Settings
from ..launch import LocalOptions, end_with_stdin
from ..launch.processes import A_DAY, BACKLOG
from ..service.identity import Identity
from ..service.start import bind
from ..session.messages import PartRun
from ..session.n_party import Party
from ..session.online import Answer, Progress, Timings
from ..session.parties import PartiesError, parties_of
from ..session.rendezvous_n import PartyContext, join_session, load_model
from ..transport.handshake import Refused
from ..transport.tls import Listener

TENSORS = ".safetensors"


@dataclass
class QueryResult:
    """A query that this party took part in.

    item      what it gave as its input; None where it gave none
    outputs   float32, at the recipient; `value`: the same in the terms of the model's task (Task.read)
    error     of this answer alone
    """

    item: str | None
    timings: Timings
    outputs: dict[str, Tensor] = field(default_factory=dict, repr=False)
    value: Any = None
    error: BlindformerError | None = None


@dataclass(frozen=True)
class OwnInput:
    """A party's own of one query: its inputs, and the values that a Program reads, in the ring. `part_run`: of a
    conversation."""

    item: str | None = None
    part_run: PartRun | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


class PartyRunner:
    """Party `name`, loaded. `listen`, `device`: over what the settings say of them.

    Errors: PartiesError, ConfigError, CertificateError, ArtifactError, ProgramError, CryptenError.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        *,
        listen: Address | None = None,
        device: str | None = None,
    ) -> None:
        check_versions()
        self.settings, self.name, self.parties = settings, name, parties_of(settings)
        self.rank = self.parties.rank(name)
        self.section = settings.crypten.parties[name]
        self.device = find_device(device or self.section.device)
        self.identity = Identity(settings.certificates.folder, name)
        self.client, self.model = load_model(self.section.folder, self.parties, self.rank, settings.crypten.length)
        self.values = [item for item, rank in self.parties.sources(self.model.program).items() if rank == self.rank]
        self.setup_s, self.setup_bytes = 0.0, 0
        self.dealer_peak_rss_mb = 0.0  # at the first party
        self._listen = listen
        self._given: Iterator[OwnInput] = iter(())
        self._now: OwnInput | None = None
        for one in self.parties.names[:-1]:
            if settings.crypten.parties[one].address is None:
                what = "has no address, and the parties after it dial it; write address = "
                raise PartiesError(f"crypten.parties.{one}: {what}")
        whole = not self.model.program.parts
        if whole and self.gets_answers and self.task == "next-token" and "attention_mask" not in self.owns:
            what = "gets the answers, and only who has the text knows where they stand"
            raise InputError(f"{name}: {what}; let the text's owner get them")

    @property
    def owns(self) -> list[str]:
        """The inputs of the model that are this party's."""
        names = self.model.program.inputs
        return [name for name in names if self.parties.input_rank(name) == self.rank] if self.values else []

    @property
    def gets_answers(self) -> bool:
        return self.rank == self.parties.recipient_rank

    @property
    def task(self) -> str:
        return self.client.task.pipeline if self.client is not None else "tensors"

    @property
    def unasked(self) -> int:
        """Inputs that nobody has asked for."""
        return length_hint(self._given)

    def give(self, items: Sequence[str]) -> None:
        """This party's inputs: texts, images' files, or .safetensors files of inputs by name; one for each query.

        Errors: InputError, ProgramError.
        """
        if items and not self.values:
            raise InputError(f"{self.name}: owns no data in this session, so it has nothing to give; leave it out")
        self._given = iter([self._encode(item) for item in items])

    def take_from(self, inputs: Iterator[OwnInput]) -> None:
        """The same, encoded, as they come."""
        self._given = inputs

    def listen(self) -> Listener | None:
        """For the parties after this one. Errors: StartError."""
        if self.rank == self.parties.size - 1:
            return None
        at = self._listen or self.section.listen or self.section.address
        assert at is not None
        sock = bind(at, BACKLOG)
        return Listener(sock, self.identity.accepting, self.settings.session.timeout)

    def take_part(
        self,
        listener: Listener | None,
        report: Callable[[OwnInput, Answer], None],
        *,
        idle: float | None = None,
        progress: Progress | None = None,
        ready: Callable[[], None] = lambda: None,
        refused: Refused = lambda error: None,
    ) -> None:
        """The whole session; `report` is told of each query (`read`), and `ready` is called before the first.

        `idle`: seconds that the party that asks may be silent between two queries (default: the timeout). Errors:
        `PeerError`, InputError, CryptenError.
        """
        settings, started = self.settings, time.perf_counter()
        context = PartyContext(
            self.parties,
            self.rank,
            self.identity.dialling,
            settings.crypten.wait,
            settings.session.timeout,
            refused,
            self.device,
        )
        sections, dealer = enumerate(settings.crypten.parties.values()), settings.parties.dealer.address
        dialled = {rank: section.address for rank, section in sections if section.address is not None}
        with join_session(context, self.model, dialled, listener, dealer) as (party, _):
            self.setup_s, self.setup_bytes = time.perf_counter() - started, party.setup_bytes
            ready()
            while (answer := self._one_query(party, idle, progress)) is not None:
                self.dealer_peak_rss_mb = party.dealer_peak_rss_mb
                report(self._now or OwnInput(), answer)

    def _one_query(self, party: Party, idle: float | None, progress: Progress | None) -> Answer | None:
        if not party.asks:
            return party.follow(idle, self._next, progress)
        self._now = next(self._given, None)
        if self._now is not None:
            return party.ask(self._now.values, progress, self._now.part_run)
        party.goodbye()
        return None

    def _next(self, number: int) -> Mapping[str, Tensor]:
        """This party's values of the query that runs now."""
        if not self.values:
            return {}
        self._now = next(self._given, None)
        if self._now is None:
            asker = self.parties.names[self.parties.asker]
            raise InputError(f"{self.name}: has given {number} inputs, and {asker} asks for more; give equally many")
        return self._now.values

    def read(self, now: OwnInput, answer: Answer) -> QueryResult:
        """What a query means, at the recipient; and what it took."""
        result = QueryResult(now.item, answer.timings)
        if not self.gets_answers:
            return result
        assert self.client is not None
        try:
            result.outputs = decode_outputs(self.model.program, answer.outputs)
            text = None if now.item is None or now.item.endswith(TENSORS) else now.item
            result.value = read_answer(self.client.task, result.outputs, now.inputs, item=text)
        except AnswerOutOfRange as error:
            result.error = error
        return result

    def _encode(self, item: str) -> OwnInput:
        assert self.client is not None
        part = self.client.for_length(self.settings.crypten.length)
        inputs, task = {}, self.client.task
        if part.parts:
            what = "is to be asked of a model that is compiled for conversations"
            raise InputError(f"{item}: {what}; use: blindformer chat FOLDER --protocol {PROTOCOL.name}")
        if item.endswith(TENSORS):
            inputs = _read_tensors(item)
        elif task.medium is not None:
            inputs = task.encode_file(item, part.samples)
        else:
            inputs = task.encode_text(item, part.program.inputs["input_ids"][-1])
        missing = [name for name in self.owns if name not in inputs]
        if missing:
            raise InputError(f"{item}: holds no {missing[0]}; give a {TENSORS} file with {', '.join(self.owns)}")
        inputs = {name: inputs[name] for name in self.owns}
        return OwnInput(item, None, inputs, part.encode_inputs(inputs, self.values))


def _read_tensors(file: str) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give a {TENSORS} file of inputs by name") from None


# --- for a launcher on this machine ---


def run_for_launcher(settings: Settings, name: str, options: LocalOptions) -> None:
    """The whole session, for the program that started this process. Errors: those of PartyRunner.

    On its connection with that program a data owner gets its values of each query, with the part that it runs; the
    party that asks starts the query then. Answers go back as ring integers. At the end of stdin the process ends.
    """
    end_with_stdin()
    link, runner = Connection(options.link), PartyRunner(settings, name)

    def given() -> Iterator[OwnInput]:
        with suppress(EOFError):
            while True:
                values, run = link.recv()
                yield OwnInput(part_run=run, values={name: torch.from_numpy(value) for name, value in values.items()})

    def report(now: OwnInput, answer: Answer) -> None:
        outputs = {name: value.numpy() for name, value in answer.outputs.items() if value is not None}
        link.send(("answered", outputs, answer.timings, runner.dealer_peak_rss_mb))

    runner.take_from(given())
    runner.take_part(
        runner.listen(),
        report,
        idle=A_DAY,
        progress=lambda *done: link.send(("progress", *done)),
        ready=lambda: link.send(("ready", runner.setup_s, runner.setup_bytes)),
    )
