"""No package of this environment has a published advisory with a remedy, where a service of advisories can be asked."""

import json
import subprocess
import sys

import pytest

KNOWN_BAD = "jinja2==2.10"  # CVE-2019-10906: a service that does not say so does not answer
ACCEPTED: dict[str, str] = {}  # an advisory's id, and why it does not concern us or cannot be followed yet


def audit(*arguments: str) -> dict | None:
    """pip-audit's report; None if its service failed."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=500, check=False)
    return json.loads(done.stdout) if done.stdout.startswith("{") else None


def advisories(report: dict | None) -> list[str]:
    """A line for each advisory that a newer version mends."""
    return [
        f"{package['name']} {package['version']}: {advisory['id']}, mended in {', '.join(advisory['fix_versions'])}"
        for package in (report or {"dependencies": []})["dependencies"]
        for advisory in package.get("vulns", ())
        if advisory["fix_versions"] and not ACCEPTED.keys() & {advisory["id"], *advisory["aliases"]}
    ]


def of_one(tmp_path, requirement: str, *service: str) -> list[str]:
    (tmp_path / "one.txt").write_text(f"{requirement}\n")
    return advisories(audit("--requirement", str(tmp_path / "one.txt"), "--no-deps", "--disable-pip", *service))


def test_no_installed_package_has_an_advisory_with_a_remedy(tmp_path):
    """A mirror of the index may answer for packages and know no advisories: so it is asked for a known one first."""
    for service in ("pypi", "osv"):
        if of_one(tmp_path, KNOWN_BAD, "--vulnerability-service", service):
            break
    else:
        pytest.skip(f"neither PyPI's nor OSV's advisories can be read here: they do not know that of {KNOWN_BAD}")
    report = audit("--vulnerability-service", service, "--skip-editable")
    assert report is not None
    assert not advisories(report)
