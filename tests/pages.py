"""The documentation's pages: their blocks, what their commands print, and the tables that the code makes.

`python tests/pages.py` writes what the commands print, and what the code makes, into the pages (test_docs.py says how
blocks are marked). With `--tables` it runs no command, and only writes tables and pictures.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from blindformer.tests.forked import Forked
from blindformer.tests.levels import without_note
from blindformer.tests.patience import PATIENCE
from blindformer.tests.pictures import PICTURES
from blindformer.tests.reference import renewed

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "bench" / "README.md"]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLAIN = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}  # of what the pages run
MODES = ("same", "alike", "runs", "parses")
SERVICES = ("dealer", "serve", "helper")  # commands that run until they are stopped
PORT = re.compile(r"(?<=:)(?:74\d\d|91\d\d)\b")


@dataclass(frozen=True)
class Command:
    """`typed`: as the page has it, perhaps on several lines that end with a backslash. `shown`: what it shows below."""

    shell: str
    typed: str
    shown: str

    @property
    def words(self) -> str:
        return re.sub(r" *\\\n *", " ", self.typed)

    @property
    def serves(self) -> bool:
        return self.words.split()[:1] == ["blindformer"] and self.words.split()[1] in SERVICES


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def mode(self) -> str:
        return next((word for word in self.words if word in MODES), "")

    @property
    def commands(self) -> list[Command]:
        parts = re.split(r"^([a-z]*)\$ ((?:.*\\\n)*.*)\n", self.text, flags=re.MULTILINE)
        return [Command(*columns) for columns in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)]

    @property
    def file(self) -> str:
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), "")

    @property
    def wants_minilm(self) -> bool:
        return "minilm" in self.text or "blindformer demo" in self.text


def blocks(language: str = "", *pages: Path) -> list[Block]:
    """In order. `pages`: without any, of all."""
    fences = [(page, match) for page in pages or PAGES for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [Block(page, m[1], tuple(m[2].split()), m[3]) for page, m in fences if language in ("", m[1])]


def execute(block: Block | str, replaced: Mapping[str, str], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a block of Python, or the one that has this word, with what is here for what is there. Its names."""
    if isinstance(block, str):
        (block,) = [one for one in blocks("python") if block in one.words]
    text, names = block.text, {} if names is None else names
    for there, here in replaced.items():
        assert there in text, f"{block.page.name} does not say {there}"
        text = text.replace(there, here)
    exec(compile(text, block.page.name, "exec"), names)
    return names


def start(command: str, folder: Path, out: IO[str], log: IO[str]) -> Forked | subprocess.Popen[bytes]:
    """A command of the pages, in `folder` (benchmarks: in the repository)."""
    name, *arguments = shlex.split(command)
    if name == "blindformer":
        return Forked(arguments, {1: out.fileno(), 2: log.fileno()}, folder, **PLAIN)
    if name == "python" and arguments[:1] == ["-m"] and arguments[1].startswith("bench."):
        environment = {**os.environ, **PLAIN}
        return subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=log, cwd=ROOT, env=environment)
    raise ValueError(f"a page runs {command!r}: only blindformer and the benchmarks are run for the pages")


def run(command: str, folder: Path) -> str:
    """What a command prints on stdout."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        code = start(command, folder, out, log).wait(PATIENCE)
        out.seek(0)
        log.seek(0)
        if code:
            raise AssertionError(f"{command}: exit code {code}\n{log.read()}")
        return "".join(f"{line.rstrip()}\n" for line in out)


@cache
def _compiled(command: str) -> tuple[tempfile.TemporaryDirectory[str], str]:
    folder = tempfile.TemporaryDirectory()
    return folder, run(command, Path(folder.name))


def run_once(command: str, folder: Path) -> str:
    """As `run`; what several pages compile is compiled for the first of them, and copied for the others."""
    if not command.startswith("blindformer compile "):
        return run(command, folder)
    compiled, printed = _compiled(command)
    shutil.copytree(compiled.name, folder, dirs_exist_ok=True)
    return printed


@contextmanager
def serving(command: str, folder: Path) -> Iterator[str]:
    """What a service says of itself before it serves. Ctrl-C has to end it in order."""
    banner_file = folder / f"{len(list(folder.iterdir()))}.said"
    with banner_file.open("w") as log:
        service = start(command, folder, log, log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (banner := re.match(r".*^takes .*?$", banner_file.read_text(), re.MULTILINE | re.DOTALL)):
            assert service.poll() is None, f"{command}: exit code {service.poll()}\n{banner_file.read_text()}"
            assert time.monotonic() < deadline, f"{command}: does not serve\n{banner_file.read_text()}"
            time.sleep(0.05)
        yield banner[0]
        service.send_signal(signal.SIGINT)
        assert (code := service.wait(PATIENCE)) == 0, f"{command}: exit code {code}\n{banner_file.read_text()}"
    finally:
        service.kill()


def write_files(page: Path, folder: Path) -> dict[str, str]:
    """The files that a page shows, with free ports instead of its own. Returns the page's port of each free one."""
    ports: dict[str, str] = {}
    for block in blocks():
        if block.page == page and block.file:
            (folder / block.file).write_text(
                PORT.sub(lambda port: ports.setdefault(port[0], str(free_port())), block.text)
            )
    return {free: port for port, free in ports.items()}


HELD: list[socket.socket] = []


def free_port() -> int:
    """A port where nobody listens, held so that no other process gets it; who asks for it by its number does."""
    HELD.append(sock := socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def shown(block: Block) -> list[str]:
    """What a block's commands print now."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ports = write_files(block.page, folder) if any(command.shell for command in block.commands) else {}
        printed = [
            stack.enter_context(serving(command.words, folder)) if command.serves else run_once(command.words, folder)
            for command in block.commands
        ]
        return [re.sub(r"(?<=:)\d+\b", lambda port: ports.get(port[0], port[0]), text) for text in printed]


def alike(text: str) -> list[str]:
    """A text without its numbers, its hashes and its spacing."""
    number = r"\b(?=[a-f]*\d)[0-9a-f]{12}\b|\b[0-9a-f]{8}\b|-?\d+(\.\d+)?"
    return [" ".join(re.sub(number, "#", line).split()) for line in without_note(text).strip().splitlines()]


def as_shown(printed: str, expected: str) -> str:
    """What was printed, cut where the page cuts it: as many lines before and after its `...`."""
    now, then = without_note(printed).strip().splitlines(), expected.strip().splitlines()
    if "..." not in then:
        return "\n".join(now)
    head, tail = then.index("..."), len(then) - 1 - then.index("...")
    return "\n".join([*now[:head], "...", *now[len(now) - tail :]])


def command_line() -> Any:
    """The whole of it, as click knows it."""
    import typer
    from blindformer.parties.cli.app import app

    return typer.main.get_command(app)


def leaves(command: Any = None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command that does something, by its words. `command`: without one, of the whole command line."""
    command = command or command_line()
    if not hasattr(command, "commands"):
        return {path: command}
    return {k: v for name, inner in command.commands.items() for k, v in leaves(inner, (*path, name)).items()}


def write(tables_only: bool) -> None:
    """Bring the pages up to date: what commands print, and what the code makes."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")

        def renew(match: re.Match[str], page: Path = page) -> str:
            block = Block(page, match[1], tuple(match[2].split()), match[3])
            if block.language != "console" or block.mode not in ("same", "alike"):
                return match[0]
            text = ""
            for command, printed in zip(block.commands, shown(block), strict=True):
                now = as_shown(printed, command.shown)
                text += f"{command.shell}$ {command.typed}\n" + (f"{now}\n" if now else "")
            return f"```{match[1]}{match[2]}\n{text}```"

        after = renewed(before if tables_only else FENCE.sub(renew, before))
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} renewed")
    for name, draw in PICTURES.items():
        (ROOT / "docs" / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    write(tables_only="--tables" in sys.argv)
