"""The house stays as designed: imports point one way, files stay readable, masks come from streams alone."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from blindformer.tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
# What each room may import of the others (design, section 1).
SHARED = {"cores", "errors", "files", "levels", "versions"}  # files beside the rooms, which import none of them
MAY_IMPORT = {
    "protocols": set(),
    "approximations": set(),
    "models": {"protocols", "approximations"},
    "parties": {"protocols", "approximations", "models"},
    "federated": {"protocols", "approximations", "models", "parties"},
}
LINES = 500
LONGER: dict[str, int] = {}  # file -> lines, each with its reason


def files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name below blindformer) of every import of this package; imports inside functions count, too."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(parse(path)):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            assert node.level - 1 <= len(package), f"{name(path)}:{node.lineno}: leaves the package"
            tail = node.module.split(".") if node.module else []
            modules = [".".join([*base, *tail, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "blindformer":
            modules = [".".join([*node.module.split(".")[1:], alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [".".join(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "blindformer"]
        for module in modules:
            yield getattr(node, "lineno", 0), module


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room of blindformer) of every import of this package."""
    for line, module in imported(path):
        yield line, module.split(".")[0]


def file_of(module: str) -> str | None:
    """The file that an imported name lives in: a module's, a package's, or that of the module which holds the name."""
    for place in (module, module.rpartition(".")[0]):
        path = place.replace(".", "/")
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if place and (ROOT / file).exists():
                return file
    return None


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    wrong = [
        f"{name(path)}:{line} imports {target}"
        for path in files(room)
        for line, target in imports(path)
        if target not in {room, *MAY_IMPORT[room], *SHARED}
    ]
    assert wrong == []
    assert {target for shared in SHARED for _, target in imports(ROOT / f"{shared}.py")} <= {"errors"}


def test_imports_inside_the_package_are_relative():
    wrong = [
        f"{name(path)}:{node.lineno}"
        for path in files(*MAY_IMPORT)
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "blindformer")
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "blindformer" for a in node.names))
    ]
    assert wrong == []


def test_no_circle_of_imports():
    arrows = {
        name(path): {file_of(module) for _, module in imported(path)} - {None, name(path)}
        for path in files(*MAY_IMPORT)
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_two_classes_of_one_name():
    classes: dict[str, list[str]] = {}
    for path in files(*MAY_IMPORT, "bench"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(f"{name(path)}:{node.lineno}")
    assert {name: places for name, places in classes.items() if len(places) > 1} == {}


def test_files_can_be_read_in_one_sitting():
    long = {name(path): len(path.read_text().splitlines()) for path in files(*MAY_IMPORT, "bench", "tests")}
    assert {path: lines for path, lines in long.items() if lines > LONGER.get(path, LINES)} == {}


def calls(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_the_library_does_not_print():
    """Output is the command line's and the benchmarks' alone."""
    allowed = {path for path in files("parties") if "cli" in path.parts}
    assert [
        f"{name(path)}:{line}"
        for path in files(*MAY_IMPORT)
        if path not in allowed
        for line, called in calls(path)
        if called == "print"
    ] == []


FORBIDDEN = ("torch.rand", "torch.manual_seed", "torch.seed", "torch.Generator", "torch.normal", "torch.bernoulli",
             "np.random", "numpy.random", "random.", "torch.empty_like.random_")  # fmt: skip


# Draws what parties leave to chance, in the open; makes forked processes draw otherwise than their parent.
HIDES_NOTHING = ("protocols/clear.py", "protocols/forks.py")


@pytest.mark.parametrize("room", ["protocols", "parties"])
def test_randomness_comes_from_streams_and_secrets_alone(room):
    wrong = [
        f"{name(path)}:{line} {called}"
        for path in files(room)
        if name(path) not in HIDES_NOTHING
        for line, called in calls(path)
        if called.startswith(FORBIDDEN) or called.endswith((".random_", ".uniform_", ".normal_", ".bernoulli_"))
    ]
    wrong += [
        f"{name(path)}:{node.lineno} import random"
        for path in files(room)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "random" in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    ]
    assert wrong == []


def test_nothing_from_a_peer_is_unpickled():
    wrong = ("pickle.", "torch.load", "marshal.", "shelve.", "yaml.load", "eval", "exec")
    assert [
        f"{name(path)}:{line} {called}"
        for path in files(*MAY_IMPORT)
        for line, called in calls(path)
        if called in wrong or called.startswith(("pickle.", "marshal.", "shelve."))
    ] == []


def test_nobody_is_asked_whether_a_models_code_may_run():
    """Auto classes run a folder's Python files on a yes at the terminal, unless they are told not to ask."""

    def forbids_code(call: ast.Call) -> bool:
        given = {k.arg or ast.unparse(k.value) for k in call.keywords}
        return bool(given & {"trust_remote_code", "FILES_ALONE", "NO_CODE"})

    assert [
        f"{name(path)}:{node.lineno}"
        for path in files(*MAY_IMPORT, "bench")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith((".from_pretrained", ".from_config"))
        and not ast.unparse(node.func).startswith("Bert")  # no Auto class
        and not forbids_code(node)
    ] == []


FORKING = re.compile(
    r"""\bos\.fork(pty)?\(|\bpty\.(fork|spawn)\b|\bpreexec_f[n]|\bnum_workers\b|(context|method)(\(|=)["']fork["']
    |\bmultiprocessing\.(Pool|Process|Manager)\b|\bmultiprocessing\ import\ .*\b(Pool|Process|Manager)\b
    |\b(get_context|ProcessPoolExecutor)\((?![^)]*(\bmp_context\b|["']))""",
    re.VERBOSE,
)


def test_only_a_process_of_one_thread_forks():
    """What another thread has locked stays locked in a child: all but `fork` spawn, or ask a fork server."""
    assert [
        f"{name(path)}:{number} {line.strip()}"
        for path in files(*MAY_IMPORT, "bench", "tests")
        if name(path) != "protocols/forks.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORKING.search(line)
    ] == []


def test_nothing_ignores_that_it_shall_end():
    """A terminal's signals and a full disk's may be ignored, never SIGTERM."""
    allowed = re.compile(r"\(signal\.SIG(INT|HUP|XFSZ), signal[.]SIG_IGN\)")
    assert [
        f"{name(path)}:{number}"
        for path in files(*MAY_IMPORT, "bench", "tests")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"[.]SIG_IGN", line) and not allowed.search(line)
    ] == []


STAND_STILL = """
import signal, threading, time
def test_waits():
    lock = threading.Lock()
    threading.Thread(target=beside, daemon=True).start()
    with lock, lock:
        pass
def beside():
    time.sleep(600)
def test_waits_in_c():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as if no signal could interrupt it
    time.sleep(600)
"""


def test_what_stands_still_is_a_failure_by_name_with_its_stacks_within_minutes(tmp_path, pytestconfig):
    limits = {name: float(pytestconfig.getini(name)) for name in ("timeout", "faulthandler_timeout")}
    assert 2 * limits["timeout"] < limits["faulthandler_timeout"] < 900
    file = tmp_path / "test_still.py"
    file.write_text(STAND_STILL)
    run = ["-m", "pytest", "-n", "2", "-c", ROOT / "pyproject.toml", "-o", "timeout=2", "-o", "faulthandler_timeout=4"]
    done = subprocess.run(
        [sys.executable, *run, file], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=PATIENCE
    )
    assert re.search(r"FAILED .*::test_waits - .*Timeout \(>2", done.stdout), done.stdout
    assert re.search(r"crashed while running '.*::test_waits_in_c'", done.stdout), done.stdout
    assert "in beside" in done.stdout
    assert "in test_waits_in_c" in done.stderr


def test_every_file_says_what_it_is_for():
    empty = [name(p) for p in files(*MAY_IMPORT) if p.read_text().strip() and not ast.get_docstring(parse(p))]
    assert empty == []


IMPORTS = """
import sys
def rooms():
    return {name.split(".")[1] for name in sys.modules if name.startswith("blindformer.")} - SHARED
import blindformer
assert not {"torch", "transformers", "numpy", "tenseal"} & set(sys.modules)
import blindformer.protocols.beaver.engine
assert rooms() == {"protocols"}
import blindformer.approximations, blindformer.parties.client.party_runner
assert "transformers" not in sys.modules
"""


def test_the_package_imports_nothing_heavy_protocols_nothing_else_and_a_party_no_transformers():
    subprocess.run([sys.executable, "-c", f"SHARED = {SHARED}\n{IMPORTS}"], check=True, cwd="/")
