"""compose.yaml: the schema takes it, all that it names exists, and each party gets its own and no more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from blindformer.tests.deploy.files import DEPLOY, SETTINGS, commands, documents, images, script, settings
from blindformer.tests.patience import PATIENCE

FILE = DEPLOY / "compose.yaml"
(COMPOSE,) = documents(FILE)
SERVICES = COMPOSE["services"]
PARTIES = {"server": "server", "dealer": "dealer", "gateway": "client"}  # who each is, in certificates
each_service = pytest.mark.parametrize("name", SERVICES)
each_party = pytest.mark.parametrize("name", PARTIES)


def mounts(name: str) -> dict[str, tuple[str, bool]]:
    """By the path in the container: what is mounted, and whether it may be written."""
    volumes = [words.split(":") for words in SERVICES[name]["volumes"]]
    return {path: (what, "ro" not in options) for what, path, *options in volumes}


@pytest.mark.parametrize("file", ["compose.yaml", "federated.yaml"])
def test_the_schema_of_compose_takes_it(file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout


def test_every_volume_is_declared_and_every_declared_one_used():
    used = {what for name in SERVICES for what, _ in mounts(name).values() if not what.startswith(".")}
    assert used == set(COMPOSE["volumes"])


@each_service
def test_what_a_service_names_exists(name, parse):
    service = SERVICES[name]
    assert images()[service["image"]] == service["build"]["target"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert set(service.get("networks", ())) <= set(COMPOSE["networks"])
    assert set(service.get("depends_on", ())) <= set(SERVICES)
    for what, _ in mounts(name).values():
        assert not what.startswith(".") or (DEPLOY / what).is_dir()
    own = commands(service.get("entrypoint", []), service["command"])
    assert own
    for command in own:
        parse(command)
    text = script(service.get("entrypoint", []), service["command"]).replace("$$", "$")
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0


@each_service
def test_a_service_may_write_to_its_volumes_and_nothing_else(name):
    service = SERVICES[name]
    assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "pid", "devices", "cap_add"} & set(service)


@each_party
def test_a_party_finds_its_certificates_and_nobody_elses(name):
    owners = defaultdict(set)
    for service in PARTIES:
        for what, _ in mounts(service).values():
            owners[what].add(service)
    assert mounts(name)[str(settings().certificates.folder)] == (f"certs-{PARTIES[name]}", False)
    assert {what for what, who in owners.items() if len(who) > 1} == {"./settings"}


def test_only_the_server_gets_the_weights():
    weights = {name for name in PARTIES for what, _ in mounts(name).values() if what == "compiled-server"}
    assert weights == {"server"}
    assert "/compiled" not in mounts("dealer")
    # The image of the parties holds none.
    assert {SERVICES[name]["image"] for name in PARTIES} == {"blindformer"}


@each_party
def test_parties_have_the_settings_and_paths_that_are_mounted(name):
    own = getattr(settings(), name)
    folder, _, file = SETTINGS.rpartition("/")
    assert mounts(name)[folder] == ("./settings", False)
    assert (DEPLOY / "settings" / file).is_file()
    for key in ("folder", "store", "state", "cache"):
        path = getattr(own if name != "gateway" or key == "state" else settings().client, key, None)
        if path is not None:
            assert any(path.is_relative_to(there) for there in mounts(name)), f"{key}: {path}"


@pytest.mark.parametrize("name", ["server", "dealer"])
def test_services_are_dialled_and_asked_for_health_where_they_listen(name):
    own, address = getattr(settings(), name), settings().address(name)
    assert (address.host, address.port) == (name, own.listen.port)
    (asked,) = re.findall(r"http://127.0.0.1:(\d+)/readyz", SERVICES[name]["healthcheck"]["test"][-1])
    assert int(asked) == own.metrics.port


def test_certificates_name_the_hosts_that_are_dialled():
    (issuing,) = commands(SERVICES["certs"]["entrypoint"], SERVICES["certs"]["command"])
    assert set(re.findall(r"--host (\S+)", issuing)) == {settings().address(role).host for role in ("server", "dealer")}


def test_the_gateway_can_be_reached_from_this_machine_only():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    port = settings().gateway.listen.port
    assert published == {"gateway": [f"127.0.0.1:{port}:{port}"]}
    assert f"http://127.0.0.1:{port}/health" in SERVICES["gateway"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("name", ["superlink", "supernode"])
def test_flowers_services_are_restarted_and_take_their_options(name):
    pytest.importorskip("flwr", reason="the extra `federated` is not installed")
    (document,) = documents(DEPLOY / "federated.yaml")
    service = document["services"][name]
    assert (service["restart"], images()[service["image"]]) == ("unless-stopped", service["build"]["target"])
    (program,) = service["entrypoint"]
    wanted = {word for word in service["command"] if word.startswith("--")}
    shown = subprocess.run(
        [Path(sys.executable).parent / program, "--help"], capture_output=True, text=True, check=True
    )
    assert wanted <= set(re.findall(r"--[a-z-]+", shown.stdout))


def test_the_build_gets_every_package():
    """.dockerignore lists what is taken."""
    taken = {line[1:] for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    rooms = {path.parent.name for path in DEPLOY.parent.glob("*/__init__.py")} - {"bench", "tests"}
    beside = {path.name for path in DEPLOY.parent.glob("*.py")}
    assert taken >= rooms | beside | {"pyproject.toml", "py.typed", "README.md", "LICENSE"}
