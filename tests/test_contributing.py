"""What CONTRIBUTING.md says works: its files in a copy of the package, its commands, its paths."""

import json
import re
import subprocess

from blindformer.tests.contributing import PAGE, ROOT, run_copy, snippets
from blindformer.tests.patience import PATIENCE

CHECKS = {  # word of a snippet -> the test that uses its file
    "approximation": "test_contributing.py::test_an_approximation_and_a_rule_run_on_secrets",
    "rule": "test_contributing.py::test_an_approximation_and_a_rule_run_on_secrets",
    "data": "test_contributing.py::test_a_data_set_is_loaded_by_its_name",
    "kind": "approximations/test_kinds.py::test_a_new_kind_is_approximated_calibrated_compiled_and_run",
    "operation": "protocols/test_new_operation.py::test_it_passes_the_suites_of_every_protocol",
    "primitive": "protocols/test_new_operation.py::test_it_passes_the_suites_of_every_protocol",
    "case": "protocols/test_new_operation.py::test_it_passes_the_suites_of_every_protocol",
    "protocol": "parties/test_registry.py::test_a_new_protocol_is_known_everywhere",
    "entry": "parties/test_registry.py::test_a_new_protocol_is_known_everywhere",
}

RUN = """
import json
import torch
import torch.nn.functional as F
import blindformer as bf
from blindformer.approximations import Plan, find
from blindformer.tests.shared.threads import in_threads

torch.set_num_threads(1)
choice = find("silu", "hard")
x = torch.linspace(*choice.domain, 100_001, dtype=torch.float64, requires_grad=True)
y = choice.function(x)
y.sum().backward()
report = {"errors": [choice.error, (y - F.silu(x)).abs().max().item()], "slope": x.grad.abs().max().item()}

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
    def forward(self, x):
        return {"silu": F.silu(self.linear(x) * 4), "leaky": F.leaky_relu(self.linear(x), 0.3)}

torch.manual_seed(0)
model, batches = Small().eval(), [{"x": torch.randn(1, 4, 8)} for _ in range(4)]
hidden = model.linear(batches[0]["x"])
expected = {"silu": choice.function(hidden * 4), "leaky": F.leaky_relu(hidden, 0.3)}
for protocol in ("clear", "beaver"):
    with in_threads(bf.make_private(model, Plan(silu="hard"), protocol, calibration=batches)) as private:
        answer = private(**batches[0])
    report[protocol] = max((answer[name] - wanted).abs().max().item() for name, wanted in expected.items())
print(json.dumps(report))
"""


def test_every_snippet_has_a_check():
    words = [snippet.word for snippet in snippets()]
    assert sorted(words) == sorted(set(words) & set(CHECKS))
    for word in words:
        file, test = CHECKS[word].split("::")
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), CHECKS[word]


def test_an_approximation_and_a_rule_run_on_secrets(contributed):
    """It is as close as it says, has a slope, is exported, and both run on `clear` and `beaver`."""
    done = run_copy(contributed, "-c", RUN)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    stated, worst = report["errors"]
    assert 0.75 * stated < worst <= stated
    assert report["slope"] > 1
    assert report["clear"] < 2**-10
    assert report["beaver"] < 2**-10


def test_a_data_set_is_loaded_by_its_name(contributed, tmp_path):
    rows = [f"it {('rains', 'shines')[n % 2]} on day {n}\t{n % 2}" for n in range(40)]
    (tmp_path / "weather.tsv").write_text("\n".join(rows))
    code = "import blindformer as bf, sys\n"
    code += "for folder in sys.argv[1:]: d = bf.load_data('weather=' + folder); print(d.labels, d.kind)"
    done = run_copy(contributed, "-c", code, tmp_path, tmp_path / "nowhere")
    assert done.stdout == "('rain', 'sun') text\n", done.stderr
    assert "weather.tsv: cannot be read" in done.stderr


def test_commands_have_their_targets_and_options():
    page = PAGE.read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)|`make (\w+)`", page, re.MULTILINE))
    names = sorted({name for pair in targets for name in pair if name})
    assert {"setup", "test", "lint", "docs"} <= set(names)
    done = subprocess.run(
        ["make", "-n", *names], cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"^\.venv/bin/python -m pytest ([^#\n]*)", page, re.MULTILINE)
    assert commands
    for words in commands:
        for path in re.findall(r"\btests/\S+", words):
            assert (ROOT / path).exists(), path
        for marker in re.findall(r'-m "not (\w+)"', words):
            assert f'"{marker}: ' in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), marker


def test_the_command_line_knows_the_commands():
    from blindformer.parties.cli.app import app
    from typer.main import get_command

    named = set(re.findall(r"`blindformer (\w+)", PAGE.read_text(encoding="utf-8")))
    assert named >= {"list", "estimate"}
    assert named - set(vars(get_command(app))["commands"]) == set()
