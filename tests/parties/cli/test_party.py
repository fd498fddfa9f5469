"""`blindformer serve --party`, and their dealer's service: each a process that knows the others by one file."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import save
from blindformer.models.compile import compile
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.tests.forked import Forked
from blindformer.tests.pages import ROOT, blocks, free_port
from blindformer.tests.patience import PATIENCE
from safetensors.torch import save_file

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

NAMES = ("alice", "bob", "carol")
TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


class TextAndImage(torch.nn.Module):
    """A text's features of one owner and an image's of another, in one classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

    def forward(self, text, image):
        return {"logits": self.head(torch.nn.functional.gelu(self.text(text) * self.image(image)))}


@pytest.fixture(scope="module")
def two_owners(tmp_path_factory):
    """(the model, its compiled folder)."""
    torch.manual_seed(0)
    model = TextAndImage().eval()
    batches = [{"text": torch.randn(1, 6), "image": torch.randn(1, 4)} for _ in range(32)]
    return model, save(compile(model, batches), tmp_path_factory.mktemp("two-owners"))


class Site:
    """A folder with one file and certificates for all; parties started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, {}
        make_certificates(folder / "certs", (*NAMES, "dealer"))

    def write(self, compiled: Path, *, wait: float = 240, **seats: str) -> None:
        """`seats`: what the file says of each party."""
        ports = [free_port() for _ in range(len(seats) + 1)]
        parts = [f'[session]\nprotocol = "crypten"\ntimeout = 60.0\n[crypten]\nwait = {float(wait)}']
        parts += [f'[parties.dealer]\naddress = "localhost:{ports[0]}"\n[dealer]\nlisten = "127.0.0.1:{ports[0]}"']
        for port, (name, lines) in zip(ports[1:], seats.items(), strict=True):
            parts.append(f'[crypten.parties.{name}]\naddress = "127.0.0.1:{port}"\nfolder = "{compiled}"\n{lines}')
        (self.folder / "blindformer.toml").write_text("\n".join(parts))

    def start(self, name: str, *arguments: object) -> None:
        command = ["dealer"] if name == "dealer" else ["serve", "--party", name]
        words = [*command, "--config", "blindformer.toml", *map(str, arguments)]
        with (self.folder / f"{name}.out").open("w") as out, (self.folder / f"{name}.log").open("w") as errors:
            self.processes[name] = Forked(words, {1: out.fileno(), 2: errors.fileno()}, self.folder)

    def end(self) -> dict[str, tuple[int, str, str]]:
        """Exit code, stdout and stderr of each: of the dealer's service when the parties have ended."""
        outcomes = {}
        for name in sorted(self.processes, key="dealer".__eq__):
            if name == "dealer":
                self.processes[name].send_signal(signal.SIGTERM)
            code = self.processes[name].wait(PATIENCE)
            outcomes[name] = code, *((self.folder / f"{name}.{what}").read_text() for what in ("out", "log"))
        return outcomes


@pytest.fixture
def site(tmp_path):
    new_site = Site(tmp_path)
    yield new_site
    for process in new_site.processes.values():
        process.kill()


@pytest.fixture
def call(call, monkeypatch, site):
    """In the site's folder."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.chdir(site.folder)
        return call(*arguments)

    return run


@pytest.mark.slow
def test_two_owners_of_data_and_one_of_the_model_and_answers_for_one_alone(site, two_owners):
    model, compiled = two_owners
    site.write(
        compiled,
        alice='owns = ["model"]\nanswers = true',
        bob='owns = ["text"]',
        carol='owns = ["image"]',
    )
    inputs = [{"text": torch.randn(1, 6), "image": torch.randn(1, 4)} for _ in range(2)]
    for number, item in enumerate(inputs):
        for name, value in item.items():
            save_file({name: value}, site.folder / f"{name}{number}.safetensors")
    site.start("dealer")
    site.start("alice", "--format", "json")
    site.start("bob", "text0.safetensors", "text1.safetensors")
    site.start("carol", "--file", "image0.safetensors", "--file", "image1.safetensors")
    outcomes = site.end()
    assert [code for code, _, _ in outcomes.values()] == [0] * 4, outcomes
    for name, (_, _, errors) in outcomes.items():
        title = f"Blindformer {name}   {'' if name == 'dealer' else 'protocol crypten   '}128 bits   mutual TLS 1.3"
        assert title in errors
        assert "secure against  semi-honest" in errors
        assert "collusion  the dealer and any party" in errors
        roster = "alice (the model, the answers)   bob (text)   carol (image)"
        assert ("that alice, bob, carol agree on" if name == "dealer" else f"parties  {roster}") in errors
    answers = json.loads(outcomes["alice"][1])
    assert (answers["protocol"], answers["recipient"], answers["parties"]) == ("crypten", "alice", list(NAMES))
    for item, answer in zip(inputs, answers["results"], strict=True):
        expected = model(**item)["logits"]
        assert (torch.tensor(answer["features"]["logits"]) - expected).abs().max() < 0.01
        assert answer["rounds"] > 0
    for name in ("bob", "carol"):
        assert "took part in 2 queries; alice has the answers" in outcomes[name][1]
        assert "logits" not in outcomes[name][1]


@pytest.mark.slow
def test_a_party_that_dies_in_a_query_is_named_by_every_other(site, classifier):
    site.write(classifier.folder, alice='owns = ["model"]', bob='owns = ["data"]', carol="answers = true")
    (site.folder / "texts").write_text("\n".join(TEXTS * 100))
    for name in ("dealer", "alice", "carol"):
        site.start(name)
    site.start("bob", "--file", "texts")
    met = {"alice": 3, "bob": 2, "carol": 2}  # the first party alone has one with the dealer
    deadline = time.monotonic() + 300
    while not all(_connections(site.processes[name].pid, count) for name, count in met.items()):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in site.processes.values())
        time.sleep(0.1)
    spent = {name: _seconds(site.processes[name].pid) for name in ("alice", "bob", "carol")}
    while any(_seconds(site.processes[name].pid) < before + 1.5 for name, before in spent.items()):
        assert time.monotonic() < deadline  # handshakes are over, and they are in the first of many queries
        time.sleep(0.1)
    site.processes["carol"].kill()
    outcomes = site.end()
    for name in ("alice", "bob"):
        code, _, errors = outcomes[name]
        assert code == 1
        assert "carol: closed the connection" in errors.splitlines()[-1]
    assert outcomes["dealer"][0] == 0, "it serves on"
    assert "carol: closed the connection" in outcomes["dealer"][2]


def _seconds(pid: int) -> float:
    import psutil

    return psutil.Process(pid).cpu_times().user


def _connections(pid: int, count: int) -> bool:
    import psutil

    return sum(c.status == "ESTABLISHED" for c in psutil.Process(pid).net_connections("tcp")) >= count


# One line each, before anything is sent.


@pytest.mark.parametrize(
    ("seats", "arguments", "line"),
    [
        ({"alice": ""}, ("--party", "alice"), "parties: 1 are named, and a session takes 2 to 64"),
        ({"alice": "", "bob": ""}, ("--party", "mallory"), "mallory: is no party of this session; choose one of alice"),
        ({"alice": "", "bob": ""}, ("--party", "alice", "--device", "gpu"), "device gpu: is none; give cpu, cuda, or"),
        ({"alice": "", "server": ""}, ("--party", "alice"), "crypten.parties.server: server is a role of other proto"),
        (
            {"alice": "", "bob": 'owns = ["model"]'},
            ("--party", "alice"),
            "crypten.parties.bob: owns the model, and is not the first; put it before alice",
        ),
        (
            {"alice": 'owns = ["data"]', "bob": 'owns = ["data"]'},
            ("--party", "bob"),
            "crypten.parties.bob: owns data, which alice owns; name one of them",
        ),
        (
            {"alice": "answers = true", "bob": "answers = true"},
            ("--party", "bob"),
            "crypten.parties: alice and bob get the answers; name one of them",
        ),
        ({"alice": "", "bob": 'own = ["data"]'}, ("--party", "bob"), "did you mean crypten.parties.bob.owns?"),
        ({"alice": "", "bob": ""}, ("--party", "alice", "a text"), "alice: owns no data in this session"),
        ({"alice": "", "bob": ""}, ("--party", "bob", ""), "a text is empty"),
        ({"alice": "", "bob": ""}, ("--party", "bob", "x.safetensors"), "x.safetensors: cannot be read"),
        (
            {"alice": "", "bob": ""},
            ("--party", "alice", "--protocol", "beaver"),
            "--protocol: does not go with --party",
        ),
    ],
)
def test_bad_input_is_one_line(refused, site, classifier, seats, arguments, line):
    site.write(classifier.folder, **seats)
    assert line in refused("serve", *arguments, "--config", "blindformer.toml")


def test_a_certificate_of_another_party_is_refused(refused, site, classifier):
    site.write(classifier.folder, alice="", bob="")
    (site.folder / "certs" / "bob.pem").write_bytes((site.folder / "certs" / "alice.pem").read_bytes())
    line = refused("serve", "--party", "bob", "--config", "blindformer.toml", "good !")
    assert "bob.pem is the certificate of alice, not of bob" in line


def test_an_address_in_use_and_a_party_that_does_not_come(call, site, classifier):
    site.write(classifier.folder, wait=0.5, alice="", bob="", carol="")
    code, _, errors = call("serve", "--party", "alice", "--config", "blindformer.toml")
    assert code == 1
    last = errors.splitlines()[-1]
    assert last == "blindformer: bob, carol: did not connect in 0.5 seconds; start it, or wait longer"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = "{}:{}".format(*taken.getsockname())
        code, _, errors = call("serve", "--party", "alice", "--config", "blindformer.toml", "--listen", at)
    assert code == 1
    assert f"{at}: cannot listen there" in errors.splitlines()[-1]


def test_services_of_other_protocols_say_what_to_start(refused, site, classifier):
    site.write(classifier.folder, alice="", bob="")
    line = refused("serve", "--config", "blindformer.toml")
    assert "session.protocol = crypten: this is for protocol beaver or ckks or delegated; start its" in line


def test_the_dealer_was_a_party_and_is_a_command(refused, site, classifier):
    site.write(classifier.folder, alice="", bob="")
    for words in (("--party", "dealer"), ("--party=dealer",)):
        line = refused("serve", *words, "--config", "blindformer.toml")
        assert "--party dealer: is a command now: blindformer dealer --config FILE" in line


def test_the_files_of_the_page_are_good(tmp_path):
    """docs/deploy.md: the first file as it is; the second is of the parties alone, after the first's."""
    from blindformer.parties.config import load_settings
    from blindformer.parties.session.parties import parties_of

    texts = [block.text for block in blocks("toml", ROOT / "docs" / "deploy.md")]
    whole, parties = (text for text in texts if "[crypten.parties" in text)
    (tmp_path / "a.toml").write_text(whole)
    roster = parties_of(load_settings(tmp_path / "a.toml", ("crypten",)))
    assert (roster.names, roster.recipient, roster.data) == (NAMES, "carol", "bob")
    (tmp_path / "b.toml").write_text(whole.partition("[crypten.parties.bob]")[0] + parties)
    assert parties_of(load_settings(tmp_path / "b.toml", ("crypten",))).owners == {"text": "bob", "image": "carol"}


def test_the_hash_covers_who_is_who_and_not_what_is_each_partys_own(site, classifier):
    from blindformer.parties.config import load_settings
    from blindformer.parties.session.parties import parties_of

    file = site.folder / "blindformer.toml"
    site.write(classifier.folder, alice="", bob='owns = ["data"]')
    text = file.read_text()

    def hashed(changed: str) -> str:
        file.write_text(changed)
        return parties_of(load_settings(file, ("crypten",))).hash()

    before = hashed(text)
    elsewhere = text.replace(f'folder = "{classifier.folder}"', 'folder = "elsewhere"\nlisten = "0.0.0.0:7446"')
    assert hashed(elsewhere) == before
    assert hashed(re.sub(r'address = "[^"]+"', 'address = "elsewhere:1"', text)) == before  # NAT, a tunnel
    assert hashed(text.replace('owns = ["data"]', "")) != before
    assert hashed(text.replace("[crypten.parties.bob]", "[crypten.parties.carol]")) != before
