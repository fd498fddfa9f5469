"""Encrypted queries on this machine: a real server over HTTPS on loopback, asked with tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...models.artifacts import Question, save
from ...models.artifacts.writing import text_length
from ...models.compile import Compiled
from ...models.encrypted import circuit_for
from ...protocols.channel import Meter
from ..launch import LOCAL
from ..session.online import Answer, Progress, Timings
from .client import EncryptedClient
from .queries import rows_of
from .session import LocalSession


class LocalEncrypted(LocalSession):
    """A session of one program. One thread: `threads` is for the others."""

    def __init__(
        self, compiled: Compiled, *, threads: int = 1, timeout: float = 120, progress: Progress | None = None
    ) -> None:
        self._folder = TemporaryDirectory(prefix="blindformer-")
        try:
            circuits = {text_length(compiled.program): circuit_for(compiled)}
            folder = save(compiled, Path(self._folder.name), circuits=circuits)
            self._client = EncryptedClient(LOCAL, folder=folder, timeout=timeout, progress=progress)
        except BaseException:
            self._folder.cleanup()
            raise
        self._part, self.open = self._client.part.for_length(), True

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> Answer:
        """The model's outputs for inputs [texts, ...], or fewer. `more` says nothing here: nothing is made ahead."""
        taken = {name: inputs[name] for name in self._part.program.inputs}
        rows = [taken] if self._part.texts == 1 else rows_of(taken, len(next(iter(taken.values()))))
        reply = self._client.ask([Question(0, self._part, row) for row in rows])
        answers, report = [reply.outputs(place) for place in range(len(rows))], reply.report
        self.setup_s, self.setup_bytes = max(self.setup_s, report.setup_s), max(self.setup_bytes, report.setup_bytes)
        timings = Timings(
            online_s=report.online_s,
            rounds=1,
            online=Meter(sent=report.sent_bytes, received=report.online_bytes - report.sent_bytes),
            peak_rss_mb=report.peak_rss_mb["client"],
        )
        outputs = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
        return Answer(outputs, timings)

    def close(self) -> None:
        self.open = False
        self._client.close()
        self._folder.cleanup()


def texts_of_circuit(compiled: Compiled) -> int:
    """Texts or images of one encrypted query."""
    circuit, _ = circuit_for(compiled)
    return circuit.packing.room
