"""CrypTen's tensors into Programs and out again, among real processes; and what is said to those that do not fit."""

import importlib.util
from contextlib import closing, suppress
from multiprocessing import get_context

import pytest
import torch

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.models.artifacts import save
from blindformer.models.compile import compile
from blindformer.parties.certificates.tls_folder import server_context
from blindformer.parties.client.local_n_party import NPartyProcesses, run_parties
from blindformer.parties.launch.processes import LaunchError
from blindformer.parties.session.parties import PartiesError, numbered
from blindformer.parties.session.tensors import meet
from blindformer.parties.transport.tls import listen
from blindformer.protocols.crypten.versions import CryptenError
from blindformer.protocols.errors import PeerError, PeerGone
from blindformer.tests.patience import PATIENCE
from torch import nn

X = torch.linspace(-2, 2, 24).reshape(3, 8)
WEIGHT = torch.linspace(-1, 1, 32).reshape(8, 4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        return {"y": self.norm(nn.functional.gelu(self.linear(x)))}


def work(session):
    crypten, mine = session.crypten, session.rank == 1
    x = crypten.cryptensor(X, src=1)
    layer = session.linear(WEIGHT if mine else None, (8, 4), src=1)  # the second party's weight
    first, again = session(x=x)["y"], session(x=x + 1)["y"]
    assert first.device == layer(first).device == x.device
    values = {
        "program": first.get_plain_text(),
        "again": again.get_plain_text(),
        "linear": layer(first).get_plain_text(),
        "truncated": session.truncate(x * 1024, 10).get_plain_text(),
        "mixed": (layer(x) * first.sum()).get_plain_text(),
    }
    refused = {}
    for name, use in {
        "plain": lambda: session(x=X),
        "missing": lambda: session(z=x),
        "shape": lambda: session(x=x[:2]),
        "layer": lambda: layer(x[:, :4]),
        "nobody": lambda: session.linear(None if mine else WEIGHT, src=1),
        "bits": lambda: session(x=_of_bits(crypten)),
    }.items():
        try:
            use()
        except CryptenError as error:
            refused[name] = str(error)
    return {name: value.tolist() for name, value in values.items()}, refused


def _of_bits(crypten):
    return crypten.cryptensor(X.long(), src=0, ptype=crypten.mpc.binary)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model = Block().eval()
    folder = tmp_path_factory.mktemp("compiled")
    save(compile(model, [{"x": 2 * torch.randn(3, 8)} for _ in range(12)]), folder)
    results = run_parties(work, 3, folder)
    assert results[0][0] == results[1][0] == results[2][0]
    return {name: torch.tensor(value) for name, value in results[0][0].items()}, results[0][1]


@pytest.mark.slow
def test_programs_and_layers_on_what_crypten_computed(found):
    values, _ = found
    with torch.no_grad():
        model = Block().eval()
        y = model(X)["y"]
        assert (values["program"] - y).abs().max() < 0.005
        assert (values["again"] - model(X + 1)["y"]).abs().max() < 0.005
        assert (values["linear"] - y @ WEIGHT).abs().max() < 0.02
        assert (values["truncated"] - X).abs().max() < 2e-4
        assert (values["mixed"] - (X @ WEIGHT) * values["program"].sum()).abs().max() < 0.01


@pytest.mark.slow
def test_what_does_not_fit_is_told_in_one_line(found):
    _, refused = found
    assert refused == {
        "plain": "input x: is a Tensor; share it first with crypten.cryptensor(..., src=...)",
        "missing": "input x: is missing; the program takes x",
        "shape": "input x: has shape [2, 8], the program takes [3, 8]",
        "layer": "x: has shape [3, 4]; this weight takes [..., 8]",
        "nobody": "weight: party 1 gives the weight, the others its shape [K, N]",
        "bits": "input x: holds shares of bits; bring it to crypten.mpc.arithmetic with .to(...)",
    }


def fails(session):
    if session.rank == 1:
        raise CryptenError("x: is not there")
    session.crypten.cryptensor(X, src=1)


@pytest.mark.slow
def test_a_party_that_fails_is_named():
    with pytest.raises(LaunchError, match=r"^bob: (x: is not there|stopped and said: x: is not there)"):
        run_parties(fails, 2)


def comes_and_goes(certificates, pipe):
    listener = listen("127.0.0.1", 0, server_context(certificates, "alice"))
    pipe.send("{}:{}".format(*listener.address))
    with suppress(PeerError), meet("alice", pipe.recv(), certificates, wait=PATIENCE, listener=listener):
        pass


def hang_up(session):
    for channel in session._party.channels:
        channel.interrupt()


@pytest.mark.slow
def test_a_goodbye_that_fails_ends_the_session():
    """CrypTen is as it was: another session may be opened in this process. The dealer serves on."""
    spawn = get_context("spawn")
    with closing(NPartyProcesses(numbered(2), PATIENCE)) as dealing:
        certificates = dealing.certificates
        pipe, other_end = spawn.Pipe()
        alice = spawn.Process(target=comes_and_goes, args=(certificates, other_end), daemon=True)
        alice.start()
        dealer = str(dealing.addresses["dealer"])
        addresses = {"alice": pipe.recv(), "bob": "127.0.0.1:1", "dealer": dealer}
        pipe.send(addresses)
        opened = meet("bob", addresses, certificates, wait=PATIENCE)  # who starts queries, and so says goodbye
        with pytest.raises(PeerGone), opened as session:
            hang_up(session)
        assert not torch.distributed.is_initialized()
        assert not session.crypten.is_initialized()
        alice.join(PATIENCE)
        assert not alice.is_alive()
        assert dealing.alive


@pytest.mark.parametrize(
    ("addresses", "line"),
    [
        ({"alice": "here:1", "bob": "here:2"}, r"^addresses: name the dealer's, beside the parties'$"),
        ({"dealer": "here:1", "alice": "here"}, r"^addresses: alice: "),
    ],
)
def test_addresses_that_cannot_be(addresses, line):
    with pytest.raises(CryptenError, match=line):
        meet("alice", addresses, "certificates").__enter__()


def test_a_session_of_one_is_refused():
    with pytest.raises(PartiesError, match="1 are named"):
        meet("alice", {"dealer": "here:1", "alice": "here:2"}, "certificates").__enter__()
