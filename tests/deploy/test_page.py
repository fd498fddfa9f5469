"""docs/deploy.md, containers: its shell is shell, its commands are ours, and what it names exists."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from blindformer.tests.deploy.files import DEPLOY, images
from blindformer.tests.pages import ROOT, blocks, leaves

PAGE = ROOT / "docs" / "deploy.md"
SHELL = [block.text for block in blocks("sh", PAGE)]


@pytest.mark.parametrize("text", SHELL)
def test_shell_is_shell_and_files_exist(text):
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in re.findall(r"(?<![\w/])deploy/[\w/.-]+", text):
        assert (ROOT / path).exists(), path


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


def test_overlays_patch_what_the_bases_have():
    (block,) = blocks("yaml", PAGE)
    for patch in yaml.safe_load(block.text)["patches"]:
        target, (operation,) = patch["target"], yaml.safe_load(patch["patch"])
        files = (DEPLOY / "kubernetes" / "server").glob("*.yaml")
        (patched,) = [
            document
            for file in files
            for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
            if (document["kind"], document.get("metadata", {}).get("name")) == (target["kind"], target["name"])
        ]
        *parents, last = operation["path"].strip("/").split("/")
        for key in parents:
            patched = patched[key]
        assert (operation["op"], last in patched) in (("add", False), ("replace", True))
