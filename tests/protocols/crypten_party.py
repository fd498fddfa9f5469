"""One of three parties of tests/protocols/test_crypten.py: CrypTen's own operations on our channels and dealer."""

import socket
import threading

import torch
from blindformer.parties.transport.stream import PlainWire, StreamChannel
from blindformer.parties.transport.tls import tcp_connect
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.crypten.mesh import Mesh
from blindformer.protocols.crypten.session import CryptenSession, DistributedCommunicator, crypten
from blindformer.protocols.crypten.source import LeaderSource, NPartyDealer, PartySource
from blindformer.protocols.crypten.tuples import make_tuple, tuple_layout
from blindformer.protocols.crypten.versions import CryptenError
from blindformer.protocols.streams import Stream, derive
from blindformer.tests.shared.memory import memory_pair

SEEDS = [bytes([k]) * 16 for k in range(3)]  # a test's dealer sits beside the leader, and the seeds are no secret


def streams(number):
    return [Stream(derive(seed, f"tuple {number}"), "masks") for seed in SEEDS]


def deal(rank):
    def make(request, number):
        mine = streams(number)[rank]
        if rank:
            return PartySource(mine, rank)
        sizes = tuple_layout(request)
        ours, theirs = memory_pair("dealer", "alice", 20)
        source = NPartyDealer(streams(number), Corrections(ours, sizes))
        threading.Thread(target=make_tuple, args=(source, request, f"tuple {number}"), daemon=True).start()
        return LeaderSource(mine, Corrections(theirs, sizes))

    return make


def connect(rank, ports):
    listener = socket.create_server(("127.0.0.1", ports[rank])) if rank < 2 else None
    channels = {}
    for peer in range(rank):
        sock = tcp_connect("127.0.0.1", ports[peer], f"party{peer}", 60, retry_seconds=60)
        channels[peer] = StreamChannel(PlainWire(sock), f"party{peer}")
        channels[peer].send_message({"rank": rank})
    while listener and len(channels) < 2:
        channel = StreamChannel(PlainWire(listener.accept()[0]), "peer")
        channels[channel.recv_message()["rank"]] = channel
    return channels


def compute():
    x = torch.tensor([[1.0, -2.0], [3.5, 0.25]])
    a, b = crypten.cryptensor(x, src=0), crypten.cryptensor(x.flip(0), src=1)
    results = {
        "mul": (a * b, x * x.flip(0)),
        "square": (a.square(), x * x),
        "matmul": (a.matmul(b), x @ x.flip(0)),
        "compare": (a > b, (x > x.flip(0)).float()),
        "divide": (a / 4.0, x / 4.0),
    }
    for name, (secret, plain) in results.items():
        assert (secret.get_plain_text() - plain).abs().max() < 1e-3, name
    return a.share.flatten().tolist()


def take_part(rank, ports):
    """In a process of its own. Party k listens at the k-th port, and dials those before it."""
    channels = connect(rank, ports)
    shares = []
    for _ in range(2):  # two sessions, one after the other, in one process
        mesh = Mesh(rank, channels)
        before = crypten.cfg.mpc.provider
        with CryptenSession(mesh, f"party{rank}", deal(rank)), crypten.no_grad():
            assert crypten.cfg.mpc.provider == "blindformer"
            shares.append(compute())
            try:
                CryptenSession(mesh, "again", deal(rank)).__enter__()
            except CryptenError:
                pass
            else:
                raise AssertionError("two sessions at once")
        mesh.close()
        assert crypten.cfg.mpc.provider == before
        assert DistributedCommunicator.instance is None
        assert not torch.distributed.is_initialized()
    assert shares[0] != shares[1], "the same values are shared afresh"
