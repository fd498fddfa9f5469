"""A worker: a process that holds the model. For each client it forks one that reads keys and ciphertexts, and computes.

    python -m blindformer.parties.service.https.worker SOCKET FOLDER KEY_BYTES [--any-ring]

Started by the service (workers.py) with one end of a pair of sockets, by its number. Ends when the other end does.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ....models.artifacts import ArtifactError, load_server
from ....models.encrypted import circuit_in
from ....models.loading.media import word_of_kind
from ....protocols.ckks.facts import CircuitNeeds, facts_from
from ....protocols.ckks.frames import pack, unpack
from ....protocols.ckks.isolated import Isolated, IsolatedEnded, Say
from ....protocols.ckks.parameters import CkksError
from ....protocols.ckks.sealed import SealedError
from ....protocols.errors import BlindformerError
from ...tuning import tune_process
from .workers import pack_message, read_message

if TYPE_CHECKING:
    from ....protocols.ckks.evaluator import Evaluator
    from ....protocols.ckks.keys import EvaluationKeys


class Worker:
    """One process. `processes`: those that share a query.

    memory    bytes that evaluation keys may take here; at least one client's are held
    weights   bytes that encoded weights may take
    """

    def __init__(
        self, sock: socket.socket, folder: Path, memory: int, weights: int, processes: int, secure: bool = True
    ) -> None:
        from ....protocols.ckks.evaluator import Evaluator

        self.sock, self.stream, self.memory = sock, sock.makefile("rb"), memory
        part = load_server(folder)
        self.facts: dict[str, CircuitNeeds] = {}
        self.evaluators: dict[str, Evaluator] = {}
        for program, item in part.items():
            if item.circuit is None:
                raise ArtifactError(f"{part.folder}: is not compiled for encrypted queries; compile with --plan he")
            facts = facts_from(item.circuit.facts.to_json(), secure=secure)
            self.facts[program] = facts
            circuit, share = circuit_in(item, facts), weights // len(part)
            self.evaluators[program] = Evaluator(circuit, facts.parameters, share, processes)
        word = word_of_kind(part.model.get("kind", ""))
        self.about = {"name": part.model.get("name", "model"), "plan": part.plan.name, "word": word}
        self.holders: OrderedDict[str, tuple[int, Isolated]] = OrderedDict()  # by keys: their bytes in memory

    def run(self) -> None:
        self._say({"ready": [facts.to_json() for facts in self.facts.values()], **self.about})
        for evaluator in self.evaluators.values():  # while the first client makes its keys
            evaluator.prepare()
        gc.freeze()  # a collection in a client's process would write to pages that it shares
        while (message := read_message(self.stream)) is not None:
            head, body = message
            getattr(self, f"do_{head['do']}")(head, body)

    def do_forget(self, head: dict[str, Any], body: bytes) -> None:
        self._drop(head["keys"])
        self._say({"good": True})

    def do_stop(self, head: dict[str, Any], body: bytes) -> None:
        """Came after the answer was on its way."""

    def do_query(self, head: dict[str, Any], body: bytes) -> None:
        """While a query computes, the service writes only "stop". It cannot sit in the stream's buffer, since the
        service writes nothing between a query and the first answer to it."""
        holder = self._holder(head)
        try:
            for message in holder.ask(body, self.sock):
                self.sock.sendall(message)
        except IsolatedEnded as error:
            self._say({"failed": str(error)})
        else:
            if holder.closed:
                self._say({"stopped": True})
        finally:
            if holder.closed:
                self._drop(head["keys"])

    def _holder(self, head: dict[str, Any]) -> Isolated:
        """The process that has a client's keys, or will have them; others make room for it."""
        name, size = head["keys"], self.facts[head["program"]].key_memory()
        if name not in self.holders:
            while self.holders and size + sum(taken for taken, _ in self.holders.values()) > self.memory:
                self._drop(next(iter(self.holders)))
            program, folder = head["program"], Path(head["folder"])
            self.holders[name] = (size, Isolated(Computing(self.facts[program], self.evaluators[program], folder)))
        self.holders.move_to_end(name)
        return self.holders[name][1]

    def _drop(self, name: str) -> None:
        if name in self.holders:
            self.holders.pop(name)[1].close()

    def _say(self, head: dict[str, Any], body: bytes = b"") -> None:
        self.sock.sendall(pack_message(head, body))


class Computing:
    """In the client's process: its keys, which lie in `folder` until the first query, and its queries."""

    def __init__(self, facts: CircuitNeeds, evaluator: Evaluator, folder: Path) -> None:
        self.facts, self.evaluator, self.folder = facts, evaluator, folder
        self._keys: EvaluationKeys | None = None

    def __call__(self, body: bytes, say: Say) -> bytes:
        try:
            return self._query(body, lambda head: say(pack_message(head)))
        except SealedError as error:
            return pack_message({"refused": str(error)})
        except BlindformerError as error:
            return pack_message({"failed": str(error)})

    def _query(self, body: bytes, say: Callable[[dict[str, Any]], None]) -> bytes:
        from ....protocols.ckks.hiding import hide
        from ....protocols.ckks.keys import load_request
        from ....protocols.ckks.sealed import to_bytes

        facts, evaluator, keys = self.facts, self.evaluator, self._load()
        items = unpack("request", facts.program, facts.request_items(), body)
        inputs = load_request(evaluator.ring, items, facts.inputs)
        say({"good": True})
        started = time.perf_counter()
        answers = evaluator.run(inputs, keys, lambda done, total: say({"done": done, "of": total}))
        hidden = hide(evaluator.ring, answers, keys)
        reply = pack("reply", facts.program, (to_bytes(hidden[item.number]) for item in facts.reply_items()))
        return pack_message({"seconds": time.perf_counter() - started}, b"".join(reply))

    def _load(self) -> EvaluationKeys:
        from ....protocols.ckks.keys import load_evaluation

        if self._keys is None:
            items = self.facts.key_items()
            sealed = ((item.number, (self.folder / str(item.number)).read_bytes()) for item in items)
            try:
                self._keys = load_evaluation(self.evaluator.ring, sealed)
            except OSError:
                raise CkksError("the keys are gone; send them again") from None
        return self._keys


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals everybody; the service ends its workers
    torch.set_num_threads(1)
    tune_process()
    number, folder, memory, weights, processes, *more = arguments
    with socket.socket(fileno=int(number)) as sock:
        try:
            sizes = int(memory), int(weights), int(processes)
            Worker(sock, Path(folder), *sizes, secure="--any-ring" not in more).run()
        except BlindformerError as error:
            sock.sendall(pack_message({"failed": str(error)}))
            return 1
        except ImportError as error:
            sock.sendall(
                pack_message({"failed": f"protocol ckks: {error.name} is missing; run: pip install 'blindformer[he]'"})
            )
            return 1
        except (BrokenPipeError, ConnectionResetError):
            return 0  # the service is gone
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
