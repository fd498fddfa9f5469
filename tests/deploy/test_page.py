"""docs/deploy.md, containers: their commands are ours, and what they name is in the Dockerfile."""

from __future__ import annotations

import re

from blindformer.tests.deploy.files import DEPLOY, images
from blindformer.tests.pages import ROOT, blocks, leaves

PAGE = ROOT / "docs" / "deploy.md"
SHELL = [block.text for block in blocks("sh", PAGE)]


def test_commands_of_containers_are_ours(parse):
    names = "|".join(path[0] for path in leaves())
    joined = "".join(SHELL).replace("\\\n", " ")
    shown = re.findall(rf"(?<!\S)blindformer (?:{names})(?= ).*", joined)
    assert len(shown) >= 2
    for command in shown:
        parse(command)


def test_images_and_paths_are_those_of_the_dockerfile():
    assert set(re.findall(r"--tag (\S+)", "".join(SHELL))) <= set(images())
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for path in re.findall(r"--volume \S+?:(/(?:state|certs|compiled))\b", "".join(SHELL)):
        assert re.search(rf"(^|\s){path}\s", text), path
