"""Scales of what runs keep: one for each state, in all programs that share it."""

import pytest
import torch
from blindformer.models.graph.graph import Builder, Node, order
from blindformer.models.graph.ranges import measure, run
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import Program
from blindformer.models.program.scales import Precision, Scaled, Scaler
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.ring import Ring
from blindformer.protocols.states import KeptStates

ROOM, WIDTH = 6, 4
generator = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)


def rows(count: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(count, WIDTH, dtype=torch.float64, generator=generator)


def drawn(x: torch.Tensor, kept: torch.Tensor | None) -> Node:
    """(x @ WEIGHT + x) @ keys^T, keys = x @ WEIGHT of this run and, where some are `held`, of earlier ones."""
    b = Builder()
    client = Node("client", shape=tuple(x.shape), owner="client", name="x", value=x)
    weight = Node("weight", shape=(WIDTH, WIDTH), owner="server", name="w", value=WEIGHT)
    keys = b.node("keep", b.matmul(client, weight), shape=tuple(x.shape), name="k")
    if kept is not None:
        state = Node("state", shape=(ROOM, WIDTH), name="k", value=kept)
        keys = b.concat([keys, state], 0)
    return b.matmul(b.add(b.matmul(client, weight), client), b.transpose(keys, 0, 1))


def scaled(out: Node, states: dict[str, int] | None = None) -> tuple[Program, Scaled]:
    result = Scaler(measure(order([out]), [None]), Precision(), states).run([out], ["y"])
    program = Program(instructions=tuple(result.instructions), outputs=result.outputs)
    program.check()
    return program, result


def asked(program: Program, result: Scaled, states: KeptStates) -> torch.Tensor:
    ring = Ring()
    sources = {
        name: ring.encode(value, scale)
        for known in (result.weights, result.constants)
        for name, (value, scale) in known.items()
    }
    sources.update({name: ring.encode(node.value, scale) for name, (node, scale) in result.clients.items()})
    (y,) = interpret(program, ClearEngine(sources, states)).outputs.values()
    return ring.decode(y, program.instructions[program.outputs["y"]].scale)


def padded(keys: torch.Tensor) -> torch.Tensor:
    return torch.cat([keys, keys.new_zeros(ROOM - len(keys), WIDTH)])


def test_programs_that_share_a_state_have_it_at_one_scale():
    """The first sees large values, the second small ones, which would have a target of their own."""
    x, later = rows(4, 300.0), rows(1)
    first, alike = scaled(drawn(x, None))
    out = drawn(later, padded(x @ WEIGHT))
    second, again = scaled(out, alike.states)
    scale = alike.states["k"]
    assert again.states == {"k": scale} != scaled(drawn(later, padded(later)))[1].states
    for program in (first, second):
        for item in program.instructions:
            if item.op in ("state", "keep"):
                assert item.scale == scale
                assert item.attributes == {"name": "k"}
            if item.op == "keep":
                argument = program.instructions[item.args[0]]
                assert (argument.scale, argument.width) == (scale, 64)
    states = KeptStates()
    for program, result, node in ((first, alike, drawn(x, None)), (second, again, out)):
        expected = run(order([node]))[id(node)]
        got = asked(program, result, states)
        assert (got - expected).abs().max() < 2.0**-9 * expected.abs().max()
    assert states.rows("k") == 5


def test_a_new_state_has_its_target_also_where_rows_are_kept_first():
    out = drawn(rows(2), padded(rows(4, 1000.0)))
    ranges = measure(order([out]), [None])
    scaler = Scaler(ranges, Precision())
    scale = scaler.run([out], ["y"]).states["k"]
    nodes = order([out])
    keep, state = (node for node in nodes if node.op in ("state", "keep"))
    assert scale == scaler.target(state) != scaler.target(keep)


def test_a_state_s_value_comes_with_the_client_s():
    out = drawn(rows(1), padded(rows(2)))
    nodes = order([out])
    (state,) = (node for node in nodes if node.op == "state")
    assert state.is_source
    assert not state.is_encoded
    x, kept = rows(1), padded(rows(3))
    values = run(nodes, {"x": x, "k": kept})
    assert torch.equal(values[id(state)], kept)
    keys = torch.cat([x @ WEIGHT, kept])
    assert values[id(out)] == pytest.approx((x @ WEIGHT + x) @ keys.T)
    assert torch.equal(run(nodes)[id(state)], state.value)
