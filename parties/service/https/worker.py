"""A worker: a process that holds the model, reads keys and ciphertexts of strangers, and computes.

    python -m blindformer.parties.service.https.worker SOCKET FOLDER KEY_BYTES [--any-ring]

Started by the service (workers.py) with one end of a pair of sockets, by its number. Ends when the other end does.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ....models.artifacts import ArtifactError, load_server
from ....models.encrypted import circuit_in
from ....models.loading.media import word_of_kind
from ....protocols.ckks.facts import CircuitNeeds, facts_from
from ....protocols.ckks.frames import pack, unpack
from ....protocols.ckks.parameters import CkksError
from ....protocols.ckks.sealed import SealedError
from ....protocols.errors import BlindformerError
from ...tuning import tune_process
from .workers import pack_message, read_message


class Stopped(Exception):
    """Nobody waits for this answer any more."""


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
        self.keys: OrderedDict[str, tuple[int, Any]] = OrderedDict()  # by name: bytes in memory, and the keys

    def run(self) -> None:
        self._say({"ready": [facts.to_json() for facts in self.facts.values()], **self.about})
        for evaluator in self.evaluators.values():  # while the first client makes its keys
            evaluator.prepare()
        while (message := read_message(self.stream)) is not None:
            head, body = message
            try:
                getattr(self, f"do_{head['do']}")(head, body)
            except SealedError as error:
                self._say({"refused": str(error)})
            except Stopped:
                self._say({"stopped": True})
            except BlindformerError as error:
                self._say({"failed": str(error)})

    def do_forget(self, head: dict[str, Any], body: bytes) -> None:
        self.keys.pop(head["keys"], None)
        self._say({"good": True})

    def do_stop(self, head: dict[str, Any], body: bytes) -> None:
        """Came after the answer was on its way."""

    def do_query(self, head: dict[str, Any], body: bytes) -> None:
        from ....protocols.ckks.hiding import hide
        from ....protocols.ckks.keys import load_request
        from ....protocols.ckks.sealed import to_bytes

        program = head["program"]
        facts, evaluator = self.facts[program], self.evaluators[program]
        keys = self._load(head)
        inputs = load_request(evaluator.ring, unpack("request", program, facts.request_items(), body), facts.inputs)
        self._say({"good": True})
        started = time.perf_counter()
        answers = hide(evaluator.ring, evaluator.run(inputs, keys, self._progress), keys)
        reply = pack("reply", program, (to_bytes(answers[item.number]) for item in facts.reply_items()))
        self._say({"seconds": time.perf_counter() - started}, b"".join(reply))

    def _load(self, head: dict[str, Any]) -> Any:
        from ....protocols.ckks.keys import load_evaluation

        name, facts = head["keys"], self.facts[head["program"]]
        if name in self.keys:
            self.keys.move_to_end(name)
            return self.keys[name][1]
        size = facts.key_memory()
        while self.keys and size + sum(taken for taken, _ in self.keys.values()) > self.memory:
            self.keys.popitem(last=False)
        folder = Path(head["folder"])
        sealed = ((item.number, (folder / str(item.number)).read_bytes()) for item in facts.key_items())
        try:
            self.keys[name] = (size, load_evaluation(self.evaluators[head["program"]].ring, sealed))
        except OSError:
            raise CkksError("the keys are gone; send them again") from None
        return self.keys[name][1]

    def _progress(self, done: int, total: int) -> None:
        # While a query computes, the service writes only "stop". `select` sees it: "stop" cannot sit in the stream's
        # buffer, since the service writes nothing between a query and the first answer to it, and this process reads
        # nothing from there on.
        if select.select([self.sock], [], [], 0)[0]:
            raise Stopped
        self._say({"done": done, "of": total})

    def _say(self, head: dict[str, Any], body: bytes = b"") -> None:
        self.sock.sendall(pack_message(head, body))


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
