"""An operation is a file and its primitive another: those of CONTRIBUTING, in a copy of the package as it is."""

import json
from importlib.util import find_spec
from pathlib import Path

from blindformer.tests.contributing import run_copy

SCALED = """
import json
import torch
from blindformer.models.graph.graph import Builder, Node, order
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import Program, ProgramError, check_offers
from blindformer.models.graph.ranges import measure
from blindformer.models.graph.ranges import run
from blindformer.models.program.scales import Precision, Scaler
from blindformer.protocols.base import find
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.ring import Ring

x, weight = torch.randn(4, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
b, client = Builder(), Node("client", shape=(4, 8), owner="client", name="x", value=x)
h = b.matmul(client, Node("weight", shape=(8, 8), owner="server", name="w", value=weight))
squared = b.node("square", b.node("square", h, shape=h.shape), shape=h.shape)
out = b.add(b.scale(squared, 0.3), b.constant(1.0))
nodes = order([out])
scaled = Scaler(measure(nodes, [None]), Precision()).run([out], ["y"])
program = Program(instructions=tuple(scaled.instructions), outputs=scaled.outputs)
program.check()
sources = {name: Ring().encode(value, scale) for known in (scaled.weights, scaled.constants)
           for name, (value, scale) in known.items()}
sources.update({name: Ring().encode(x, scale) for name, (_, scale) in scaled.clients.items()})
(y,) = interpret(program, ClearEngine(sources)).outputs.values()
y = Ring().decode(y, program.instructions[program.outputs["y"]].scale)
expected = run(nodes)[id(out)]
said = {"off": float((y - expected).abs().max() / expected.abs().max()), "offers": []}
for name in ("beaver", "ckks", "clear", "crypten"):
    try:
        check_offers(program, find(name))
        said["offers"].append(name)
    except ProgramError as error:
        said["refused"] = str(error)
print(json.dumps(said))
"""


def ran(copy: Path, *words: str) -> str:
    done = run_copy(copy, *words, cwd=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_passes_the_suites_of_every_protocol(contributed):
    """What `clear` computes, at the declared price; a party may be away, and there may be more of them."""
    count = 6 if find_spec("crypten") else 4
    file = "tests/protocols/test_conformance.py"
    assert f"{count} passed" in ran(
        contributed, "-m", "pytest", "-k", "squares and (torch or away) and not replicated", file
    )


def test_a_compiler_scales_it_and_protocols_without_a_primitive_refuse_it(contributed):
    report = json.loads(ran(contributed, "-c", SCALED))
    assert report["off"] < 2**-8
    assert report["offers"] == ["beaver", "clear", "crypten"]
    assert "needs the operation square, which protocol ckks does not offer" in report["refused"]
