"""What the pages on deploying and operating say beside commands: files load, systemd takes the units, names exist."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from blindformer.parties.config import load_settings
from blindformer.parties.service.metrics import METRICS
from blindformer.tests.pages import ROOT, blocks, leaves

DEPLOY, OPERATIONS = ROOT / "docs" / "deploy.md", ROOT / "docs" / "operations.md"
UNITS = sorted((ROOT / "docs" / "systemd").glob("*.service"))
COMMAND = {"dealer": "dealer", "gateway": "gateway", "helper": "helper", "server": "serve"}


# Configuration.


@pytest.mark.parametrize("text", [block.text for block in blocks("toml", DEPLOY) if "[crypten" not in block.text])
def test_every_file_shown_can_be_used(text, tmp_path):
    (tmp_path / "blindformer.toml").write_text(text)
    settings = load_settings(tmp_path / "blindformer.toml")
    dialled = {"pair": ("server",), "dealer": ("server", "dealer"), "helper": ("server", "dealer", "helper")}
    for role in dialled[settings.session.topology]:
        assert f"[parties.{role}]" in text
        # Where a service is dialled and where it listens are one port here.
        if f"[{role}]" in text:
            assert settings.address(role).port == getattr(settings, role).listen.port


# Shell.


@pytest.mark.parametrize("page", [DEPLOY, OPERATIONS], ids=lambda page: page.name)
def test_shell_blocks_are_shell_and_name_commands_that_exist(page):
    texts, names = [block.text for block in blocks("sh", page)], {path[0] for path in leaves()}
    assert texts
    for text in texts:
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        for line in text.replace("\\\n", " ").splitlines():
            if "kubectl " in line:  # its namespace has our name
                continue
            words = shlex.split(line, comments=True)
            for before, word in zip(["", *words], words, strict=False):
                if Path(before).name == "blindformer" and not word.startswith(("/", "-", ".")):
                    assert word in names, line
            for word in words:
                if word.startswith(("docs/", "deploy/")):
                    assert (ROOT / word).exists(), line


# Units.


def read_unit(path: Path) -> configparser.ConfigParser:
    """As far as one value a key goes; the last one of those that may be repeated."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(path)
    return unit


def test_there_is_a_unit_for_each_service():
    assert [path.name for path in UNITS] == [f"blindformer-{role}.service" for role in sorted(COMMAND)]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_start_a_command_that_exists_with_its_own_certificate(path):
    role = path.stem.removeprefix("blindformer-")
    unit, text = read_unit(path), path.read_text()
    program, command, *options = shlex.split(unit["Service"]["ExecStart"])
    assert program == "/opt/blindformer/bin/blindformer"
    assert command == COMMAND[role]
    known = {name for parameter in leaves()[command,].params for name in parameter.opts}
    assert {word for word in options if word.startswith("--")} <= known
    given = re.findall(r"^LoadCredential=(\S+?):(\S+)$", text, re.MULTILINE)
    owner = {"gateway": "client"}.get(role, role)
    assert given == [(f"{owner}.key", f"/etc/blindformer/certs/{owner}.key")]
    assert "--certs /etc/blindformer/certs" in unit["Service"]["ExecStart"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_leave_time_to_finish_and_nothing_else_to_reach(path):
    service = read_unit(path)["Service"]
    assert float(service["TimeoutStopSec"]) > load_settings().server.grace
    assert service["KillMode"] == "mixed"
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictNamespaces"):
        assert service[name] == "yes", name
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert "MemoryDenyWriteExecute" not in service  # torch compiles kernels while it runs
    assert path.stem in service["StateDirectory"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_the_units(path, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed; the tests above read the units")
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/blindformer/bin/blindformer", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("systemd-analyze does not work here; the tests above read the units")
    assert (done.returncode, done.stderr) == (0, "")


# Names in the page on operating.


def test_every_metric_is_described_and_no_other():
    page = OPERATIONS.read_text(encoding="utf-8")
    named = set(re.findall(r"\bblindformer_([a-z_]+?)(?:_total|_bucket|_sum|_count)?\b", page))
    assert named == set(METRICS)
    for name, metric in METRICS.items():
        assert not metric.label or f"`{metric.label}`" in page, name


def test_every_event_of_the_log_is_described():
    page = OPERATIONS.read_text(encoding="utf-8")
    files = [path for room in ("service", "helper") for path in (ROOT / "parties" / room).glob("*.py")]
    code = "".join(path.read_text() for path in files)
    events = set(re.findall(r'log\.(?:info|warning|error)\(\s*"([a-z-]+)"', code))
    events |= {name for pair in re.findall(r'return "([a-z]+-[a-z]+)" if .* else "([a-z]+)"', code) for name in pair}
    assert {"ready", "answered", "session-failed"} <= events
    assert {event for event in events if f"`{event}`" not in page} == set()
