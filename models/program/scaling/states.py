"""What is kept for later runs: at one scale in all programs that share it."""

from __future__ import annotations

from ...graph.graph import Node
from ..scales import Scaler, scale_rule


@scale_rule("state")
def state(at: Scaler, node: Node) -> None:
    at.emit(node, [], at.state_scale(node.name, node), name=node.name, **node.attributes)


@scale_rule("keep")
def keep(at: Scaler, node: Node) -> None:
    name = node.attributes["name"]
    scale = at.state_scale(name, node)
    at.emit(node, [at.exactly(node.args[0], scale)], scale, name=name)
