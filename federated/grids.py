# pyright: reportMissingImports=false
"""Flower's Grid, the server's way to its clients, twice: all clients in this process, and some nodes of another grid.

Simulation in one process needs no Ray and starts at once: messages are the same objects that a SuperLink would carry,
clients run one after the other. Flower's own runtimes take the same apps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from .settings import FederateError

FAILED = 0


class LocalGrid(Grid):
    """Clients of this process, by node number, each with a configuration and a state of its own."""

    def __init__(self, app: ClientApp, nodes: Mapping[int, Mapping[str, Any]], config: Mapping[str, Any]) -> None:
        # Flower's messages say which run made them; its runtimes set this where a process begins.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self._app = app
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config=dict(own), state=RecordDict(), run_config=dict(config))
            for node, own in nodes.items()
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Any) -> None:
        raise FederateError("clients of one process belong to one run")

    @property
    def run(self) -> Any:
        raise FederateError("clients of one process have no record of a run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Each is answered at once."""
        sent = []
        for message in messages:
            self._sent += 1
            name = str(self._sent)
            message.metadata.__dict__["_message_id"] = name
            self._replies[name] = self._answer(message)
            sent.append(name)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            return self._app(message, self._contexts[node])
        except Exception as error:  # as a SuperNode does: a client's bug is its own
            return Message(Error(FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


class Chosen(Grid):
    """Some nodes of a grid: what a strategy is shown, so that it asks these."""

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self._grid, self._nodes = grid, list(nodes)

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)
