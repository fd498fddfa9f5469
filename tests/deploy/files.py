"""What is in deploy/, read: YAML, the images that the Dockerfile makes, and the commands of containers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from blindformer.parties.config import Settings, load_settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SETTINGS = "/etc/blindformer/blindformer.toml"  # where containers find it
USER = 10001


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def settings() -> Settings:
    return load_settings(DEPLOY / "settings" / "blindformer.toml")


def images() -> dict[str, str]:
    """The stage of the Dockerfile that each image is, as its first lines build them; the last stage is the default."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    built = [shlex.split(line[1:]) for line in text.splitlines() if line.startswith("#     docker build")]
    stage_of = {
        words[words.index("--tag") + 1]: words[words.index("--target") + 1] if "--target" in words else stages[-1]
        for words in built
    }
    assert set(stage_of.values()) <= set(stages)
    return stage_of


def commands(entrypoint: list[str], arguments: list[str]) -> list[str]:
    """The commands of ours that a container runs: the image's own, or those of a script."""
    if not entrypoint:
        return [shlex.join(["blindformer", *arguments])]
    return [line.strip() for line in arguments[-1].splitlines() if line.strip().startswith("blindformer ")]


def script(entrypoint: list[str], arguments: list[str]) -> str:
    return arguments[-1] if entrypoint else ""
