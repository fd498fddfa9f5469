"""One file for all parties: what it may say, what it means, and what a mistake in it is answered with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blindformer.parties.config import Address, ConfigError, Settings, load_settings, parse_address
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def write(tmp_path):
    """`write(text)` gives a file with that text."""

    def make(text: str) -> Path:
        path = tmp_path / "blindformer.toml"
        path.write_text(text)
        return path

    return make


def problem(path: Path | None, **flags) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What wins.


def test_flag_over_file_over_default(write):
    path = write("[server]\nsessions = 3\nqueue = 4\n[session]\ntimeout = 5\n")
    settings = load_settings(path, **{"server.queue": 7, "server.sessions": None, "client.wait": 0.0})
    assert (settings.server.sessions, settings.server.queue) == (3, 7)
    assert settings.session.timeout == 5.0
    assert settings.client.wait == 0.0
    assert settings.dealer.sessions == 32


def test_the_printed_example_shows_every_key_with_its_default(call, tmp_path):
    code, text, errors = call("doctor", "--print-config")
    assert (code, errors) == (0, "")
    path = tmp_path / "blindformer.toml"
    path.write_text(text)
    (tmp_path / "empty.toml").write_text("")
    assert load_settings(path).model_dump() == load_settings(tmp_path / "empty.toml").model_dump()

    path.write_text(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    full = load_settings(path).model_dump()
    for section in ("server", "dealer", "helper", "client"):
        assert all(value is not None for value in full[section].values()), section
    shown = set(re.findall(r"^(?:# )?(\w+) = ", text, flags=re.MULTILINE))
    keys = {key for section in full.values() for key in section if not isinstance(section[key], dict)}
    assert shown == keys | {"address"}

    path.write_text(re.sub(r"^#     ?(?=\[|\w+ = )", "", text, flags=re.MULTILINE))  # the models and parties, too
    named = load_settings(path)
    for sections in (named.gateway.models.values(), named.crypten.parties.values()):
        assert {key for section in sections for key in section.model_fields_set} == set(
            type(next(iter(sections))).model_fields
        )


# Paths and addresses.


def test_paths_of_a_file_are_relative_to_it_and_flags_to_the_working_folder(write, tmp_path, monkeypatch):
    write('[certificates]\nfolder = "keys"\n[server]\nstore = "/var/spool/b"\n[client]\ncache = "~/c"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/ada")
    settings = load_settings(Path("../blindformer.toml"), **{"client.folder": Path("model")})
    assert settings.certificates.folder.resolve() == tmp_path / "keys"
    assert settings.server.store == Path("/var/spool/b")
    assert settings.server.folder.resolve() == tmp_path / "compiled" / "server"  # a default counts as the file's
    assert settings.client.cache == Path("/home/ada/c")
    assert settings.client.folder == elsewhere / "model"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("server.example:7443", "server.example", 7443),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:7443", "fe80::1%eth0", 7443),
        ("my_host.:80", "my_host.", 80),
    ],
)
def test_addresses(text, host, port):
    address = parse_address(text)
    assert address == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "server", "server:", ":7443", "a:b", "a:-1", "a:65536", "a:99999", "::1:7443", "[::1]", "[a]:1", "[1.2.3.4]:1",
     "http://a:1", "a b:1", "-a:1", "a..b:1", "a:١", "a:7443 ", "[::1:7443"],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match=r"port|IPv6"):
        parse_address(text)


@given(st.text(alphabet="ab.:[]%-_0159 \n", max_size=20))
def test_an_address_is_read_back_as_it_is_written(text):
    message = ""
    try:
        address = parse_address(text)
        assert parse_address(str(address)) == address
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


def test_port_zero_is_for_listening(write):
    assert load_settings(write('[server]\nlisten = "127.0.0.1:0"\n')).server.listen.port == 0
    assert "ports are 1 to 65535" in problem(write('[parties.server]\naddress = "a:0"\n'))


# Mistakes: one line that names the file, the key and what is allowed.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nworker = 2", "server.worker: is not a known key; did you mean server.workers?"),
        ("[sever]\nworkers = 2", "sever: is not a known key; did you mean server?"),
        ("[session]\nworkers = 2", "session.workers: is not a known key; it belongs in [server] or [dealer]"),
        (
            "[client]\nxyz = 2",
            "client.xyz: is not a known key; known in [client]: folder, device, adapter, pad, memory, store, ",
        ),
        ("[client]\ncommitment = 'f0'", 'client.commitment = "f0": should be 64 hexadecimal digits, as `blindformer'),
        ("[dealer]\nreplicas = 2", "dealer.replicas: a service is one process now: leave it out, and run several"),
        ("[parties.server]\nreplicas_at = []", "parties.server.replicas_at: no service sends a session elsewhere now"),
        ("[parties.client]\naddress = 'a:1'", "parties.client: is not a known key; known in [parties]: server, dealer"),
        ("[server]\nworkers = '2'", 'server.workers = "2": should be a valid integer'),
        ("[server]\nlisten = 7443", 'server.listen = 7443: should be "host:port"'),
        ("[session]\ntimeout = 0", "session.timeout = 0: should be greater than 0"),
        ("session = 3", "session = 3: should be a section, [session]"),
        ("[session", "is not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(write, text, message):
    path = write(text)
    assert problem(path).startswith(str(path))
    assert message in problem(path)


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(write):
    message = problem(write("[server]\nsessions = 3\n"), **{"server.listen": "nowhere"})
    assert message.startswith('the command line: server.listen = "nowhere": should be "host:port"')


def test_all_mistakes_are_known_and_the_first_is_said(write):
    path = write("[server]\nworkers = 0\nsesions = 1\n[client]\nwait = -1\n")
    with pytest.raises(ConfigError, match=r"\(and 2 more\)$") as caught:
        load_settings(path)
    assert len(caught.value.problems) == 3


def test_a_file_that_is_not_there(tmp_path):
    assert "there is no such file" in problem(tmp_path / "no.toml")
    assert "cannot be read" in problem(tmp_path)


def test_a_long_wrong_value_is_cut(write):
    assert len(problem(write(f'[server]\nlisten = "{"x" * 9999}"\n'))) < 300


KEYS = ["session", "session.timeout", "session.timeout.x", "parties.server", "parties.server.address", "server.listen",
        "server.workers", "client.folder", "client.wait", "x", "x.y"]  # fmt: skip
SCALARS = st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.booleans())
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2))


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_whatever_is_given_is_taken_or_answered_in_one_line(values):
    message = ""
    try:
        assert isinstance(load_settings(None, **values), Settings)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


# What all parties must have in common.


def test_the_shared_hash_is_of_what_is_shared(write):
    base = load_settings(write("")).shared_hash()
    assert re.fullmatch("[0-9a-f]{64}", base)
    own = '[server]\nworkers = 1\n[client]\nwait = 1\n[certificates]\nfolder = "x"\n'
    assert load_settings(write(own)).shared_hash() == base
    assert load_settings(write('[session]\nprotocol = "beaver"\n')).shared_hash() == base  # the default, written out
    assert load_settings(write("[session]\ntimeout = 61\n")).shared_hash() == base
    for different in ('protocol = "ckks"', 'topology = "helper"'):
        assert load_settings(write(f"[session]\n{different}\n")).shared_hash() != base
    assert load_settings(write(""), **{"session.topology": "helper"}).shared_hash() != base


@pytest.mark.parametrize("common", ["", '[session]\ntopology = "helper"\n'])
def test_where_a_party_is_dialled_is_not_compared(write, common):
    """Behind NAT, through a tunnel or as a service of a cluster, one address is another's other one."""
    base = load_settings(write(common)).shared_hash()
    for role in ("server", "dealer", "helper"):
        elsewhere = f'{common}[parties.{role}]\naddress = "a:1"\n'
        assert load_settings(write(elsewhere)).shared_hash() == base
        assert load_settings(write(common), **{f"parties.{role}.address": "a:1"}).shared_hash() == base


def test_without_a_file_nothing_is_compared():
    assert load_settings(None, **{"session.timeout": 3.0}).shared_hash() == ""


def test_nobody_dials_a_client():
    with pytest.raises(ValueError, match="nobody dials"):
        load_settings().address("client")
    assert Address("::1", 7443) == ("::1", 7443)
