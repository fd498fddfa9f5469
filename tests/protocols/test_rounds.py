"""Independent openings travel together, in an order both parties share; a cycle of waits is an error, not a hang."""

import threading

import pytest
import torch
from blindformer.protocols.errors import PeerProtocolError
from blindformer.protocols.rounds import Graph, Swap, over_channel, run_rounds, together
from blindformer.protocols.wire import pack, unpack, wire_bytes
from blindformer.tests.shared.memory import memory_pair
from hypothesis import given
from hypothesis import strategies as st


def mirror(seen):
    """A wire whose peer sends back what it gets; notes the sizes of each round."""

    def exchange(swaps):
        seen.append([s.send_bytes for s in swaps])
        return [s.send for s in swaps]

    return exchange


def opening(number, *, rounds=1):
    for _ in range(rounds):
        (answer,) = yield [Swap(torch.tensor([number]), (1,))]
        assert answer.item() == number
    return number


def run(graph, wire, done):
    """graph: per task, (tasks it needs, rounds it takes)."""
    start = lambda task: opening(task, rounds=graph[task][1])  # noqa: E731
    return run_rounds(Graph([needs for needs, _ in graph]), start, lambda _, value: done.append(value), wire)


def run_steps(steps, wire, done):
    """Steps that need none of the others."""
    return run_rounds(Graph([()] * len(steps)), lambda task: steps[task](), lambda _, value: done.append(value), wire)


@pytest.mark.parametrize(
    ("graph", "rounds"),
    [([((), 1)] * 5, 1), ([((), 1), ((0,), 2), ((), 3), ((1, 2), 1), ((0,), 0)], 4)],
    ids=["independent", "deep"],
)
def test_rounds_are_the_depth_of_the_program(graph, rounds):
    """Independent openings share one message."""
    seen, done = [], []
    assert run(graph, mirror(seen), done) == rounds
    assert sum(map(len, seen)) == sum(count for _, count in graph)
    if rounds == 1:
        assert (seen, done) == ([[8] * 5], [0, 1, 2, 3, 4])
    else:
        assert done.index(4) < done.index(3)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 12))
    return [
        (sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [], draw(st.integers(0, 3)))
        for i in range(count)
    ]


@given(graphs())
def test_any_graph_takes_as_many_rounds_as_its_longest_path(graph):
    depth = []
    for needs, rounds in graph:
        depth.append(max((depth[n] for n in needs), default=0) + rounds)
    done = []
    assert run(graph, mirror([]), done) == max(depth)
    assert sorted(done) == list(range(len(graph)))


@given(graphs())
def test_two_parties_pack_in_the_same_order(graph):
    logs: list[list[list[int]]] = [[], []]
    for seen in logs:

        def wire(swaps, seen=seen):
            seen.append([int(s.send) for s in swaps])
            return [s.send for s in swaps]

        run(graph, wire, [])
    assert logs[0] == logs[1]
    assert all(order == sorted(order) for order in logs[0])


@pytest.mark.parametrize(("depths", "sizes"), [((1, 3, 2), [[8, 8, 8], [8, 8], [8]]), ((0, 1), [[8]])])
def test_together_runs_steps_side_by_side(depths, sizes):
    def both():
        return (yield from together(*(opening(i, rounds=rounds) for i, rounds in enumerate(depths))))

    seen, done = [], []
    assert run_steps([both], mirror(seen), done) == max(depths)
    assert (seen, done) == (sizes, [list(range(len(depths)))])


def test_waiting_for_an_opening_under_way_costs_no_round():
    state = {}

    def opens():
        state["value"] = yield [Swap(torch.tensor([7]), (1,))]

    def waits():
        while "value" not in state:
            yield []
        return state["value"]

    done = []
    assert run_steps([waits, opens], mirror([]), done) == 1
    assert [value[0].item() for value in done if value is not None] == [7]


def test_a_wait_without_end_is_found():
    def waits():
        while True:
            yield []

    with pytest.raises(RuntimeError, match="waits for another's opening"):
        run_steps([waits], mirror([]), [])


def test_one_frame_per_direction_and_none_where_there_is_nothing_to_send():
    server, client = memory_pair(timeout=5)
    wire, other = over_channel(server), over_channel(client)
    x = torch.tensor([1, -2, 3])
    results = []
    theirs = [Swap(x, None), Swap(x, (2,), 4), Swap(None, (1,), 2)]
    thread = threading.Thread(target=lambda: results.append(other(theirs)))
    thread.start()
    got = wire([Swap(None, (3,)), Swap(torch.tensor([5, 6]), (3,), 4), Swap(torch.tensor([9]), None, 2)])
    thread.join()
    assert got[0].tolist() == [1, -2, 3]
    assert got[1].tolist() == [1, -2, 3]
    assert got[2] is None
    assert [r if r is None else r.tolist() for r in results[0]] == [None, [5, 6], [9]]
    assert (server.meter.messages_sent, server.meter.sent) == (1, 2 * 4 + 1 * 2)
    assert (client.meter.messages_sent, client.meter.sent) == (1, 3 * 8 + 3 * 4)
    over_channel(server)([Swap(x, None)])
    assert client.meter.messages_sent == 1


def test_a_frame_of_another_size_is_an_error_that_names_the_peer():
    server, client = memory_pair(timeout=5)
    client.send(bytes(23))
    with pytest.raises(PeerProtocolError, match="client: sent a frame of 23 bytes where 24 were expected"):
        over_channel(server)([Swap(None, (3,))])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_the_low_bytes_of_every_element_arrive(parts, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator) for count, _ in parts]
    size = sum(count * width for count, width in parts)
    data = pack(((t, width) for t, (_, width) in zip(tensors, parts, strict=True)), size)
    at = 0
    for tensor, (count, width) in zip(tensors, parts, strict=True):
        kept = (1 << (8 * width)) - 1 if width < 8 else -1
        assert torch.equal(unpack(data, at, (count,), width) & kept, tensor & kept)
        at += count * width


def test_bits_round_up_to_bytes():
    assert [wire_bytes(bits) for bits in (-3, 0, 1, 8, 9, 63, 64, 70)] == [0, 0, 1, 1, 2, 8, 8, 8]
