"""The Program as data: read back as written, the same hash everywhere, and refused when it is not a program."""

import hashlib
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from blindformer.models.program.program import (
    Instruction,
    PreludeStep,
    Program,
    ProgramError,
    check_offers,
    constant_digest,
)
from blindformer.protocols.base import find
from blindformer.protocols.operations import operations
from blindformer.tests.protocols.cases import CASES


@pytest.fixture
def program(tiny) -> Program:
    return tiny("bert", "fast").compiled.program


def test_json_round_trip(program, tmp_path):
    again = Program.from_json(program.to_json())
    assert again == program
    assert again.hash() == program.hash()
    program.save(tmp_path / "program.json")
    assert Program.load(tmp_path / "program.json") == program


def test_the_hash_is_the_same_in_another_process(program, tmp_path):
    program.save(tmp_path / "program.json")
    code = "import sys; from blindformer.models.program.program import Program; print(Program.load(sys.argv[1]).hash())"
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "program.json")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )
    assert out.stdout.strip() == program.hash()


def test_constants_are_named_by_all_of_sha_256():
    wide = torch.randint(-(2**40), 2**40, (3, 5))
    assert constant_digest(wide) == hashlib.sha256(wide.numpy().tobytes()).hexdigest()
    assert constant_digest(torch.ones(2, dtype=torch.int8)) == constant_digest(torch.ones(2, dtype=torch.int64))


def test_the_order_of_keys_and_blanks_do_not_count(program):
    shuffled = json.dumps(dict(reversed(json.loads(program.to_json()).items())), indent=3)
    assert Program.from_json(shuffled).hash() == program.hash()


CHANGES = {
    "a scale": lambda d: d["instructions"][3].update(scale=1),
    "a width": lambda d: d["instructions"][3].update(width=8),
    "a path": lambda d: d["instructions"][3].update(path="elsewhere"),
    "an attribute": lambda d: d["instructions"][-1]["attributes"].update(to="server"),
    "an argument": lambda d: d["instructions"][-1].update(args=[1]),
    "an instruction": lambda d: d["instructions"].pop(0),
    "an output's name": lambda d: d["outputs"].update({"other": d["outputs"].popitem()[1]}),
    "the plan": lambda d: d.update(plan="0" * 64),
    "the ring": lambda d: d.update(ring=32),
    "a prelude step": lambda d: d["prelude"][0].update(target="aten.add.Tensor"),
    "a constant": lambda d: d["constants"].update(more="0" * 64),
    "what is released": lambda d: d["released"].pop(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_changes_the_hash(program, what):
    data = json.loads(program.to_json())
    CHANGES[what](data)
    assert Program.model_validate(data).hash() != program.hash()


def test_a_changed_copy_has_its_own_hash(program):
    before = program.hash()
    assert program.model_copy(update={"plan": "x"}).hash() != before
    assert program.model_copy().hash() == before


def test_pricing_imports_neither_a_compiler_nor_sympy(program, tmp_path):
    """Torch does that for some operations on tensors without storage: seconds, and memory, in every party's process."""
    chosen = {"model": program, **{name: build().program for name, build in CASES.items()}}
    for number, item in enumerate(chosen.values()):
        item.save(tmp_path / f"{number}.json")
    code = """
import sys, pathlib
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
for number in range(int(sys.argv[2])):
    price(Program.load(pathlib.Path(sys.argv[1]) / f"{number}.json"))
    assert not {"torch._dynamo", "sympy"} & set(sys.modules), number
"""
    words = [sys.executable, "-c", code, str(tmp_path), str(len(chosen))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{list(chosen)}: {done.stderr}"


def test_it_holds_no_weights(tiny):
    """Its size does not grow with the model's width, and none of the integers of a weight is in it."""
    compiled = tiny("bert", "fast").compiled
    text = compiled.program.to_json()
    for name, weight in compiled.weights.items():
        large = weight.flatten()[weight.flatten().abs() > 9999][:20].tolist()
        assert not [number for number in large if str(number) in text], name
    assert not any(len(str(v)) > 4000 for item in compiled.program.instructions for v in item.attributes.values())


def one(*items) -> str:
    return Program(instructions=tuple(items)).to_json()


CLIENT = Instruction(op="client", attributes={"name": "x"}, shape=(2,))

BAD = {
    "an unknown field": (lambda d: d.update(extra=1), r"program: extra: .*compile the model again"),
    "an unknown field of an instruction": (
        lambda d: d["instructions"][0].update(cost=1),
        r"program: instructions\.0\.cost: .*compile the model again",
    ),
    "an unknown operation": (
        lambda d: d["instructions"][0].update(op="decrypt"),
        r"program: instruction 0: operation decrypt is not known; update blindformer",
    ),
    "a reference forward": (
        lambda d: d["instructions"][0].update(args=[1]),
        r"program: instruction 0: reads a value that does not exist yet",
    ),
    "a reference to itself": (lambda d: d["instructions"][1].update(args=[1]), "does not exist yet"),
    "a negative reference": (lambda d: d["instructions"][1].update(args=[-1]), "does not exist yet"),
    "a ring that no memory holds": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "rescale")["attributes"].update(ring=10**11),
        r"program: instruction \d+: rescale of a number of bits that no ring has",
    ),
    "a shift that is no number": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "rescale")["attributes"].update(bits="7"),
        r"program: instruction \d+: rescale of a number of bits that no ring has",
    ),
    "a rescale that leaves nothing": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "rescale")["attributes"].update(bits=20, ring=21),
        r"program: instruction \d+: a rescale that leaves too few bits to open",
    ),
    "a rescale that is early by a word": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "rescale")["attributes"].update(early="no"),
        r"program: instruction \d+: a rescale that is early by something else than a yes or no",
    ),
    "a table that no memory holds": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "lookup")["attributes"].update(
            bits=60, low=2, drop=0
        ),
        r"program: instruction \d+: a table of more than 65,536 cells",
    ),
    "a place that is no number": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "lookup")["attributes"].update(start="7"),
        r"program: instruction \d+: a table with a place that is no whole number",
    ),
    "exponentials with no rate": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "lookup")["attributes"].update(rate=float("nan")),
        r"program: instruction \d+: a table of exponentials with a rate that no table has",
    ),
    "a negative width": (
        lambda d: d["instructions"][3].update(width=-8),
        r"program: instruction 3: \w+ of a number of bits that no ring has",
    ),
    "a result for the server": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "reveal")["attributes"].update(to="server"),
        r"program: instruction \d+: tells a result to others than the data's owner",
    ),
    "an output that is not there": (lambda d: d["outputs"].update(y=10**6), "an output does not exist"),
    "a source without a name": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "weight").update(attributes={"name": ["w"]}),
        r"program: instruction \d+: a source without a name",
    ),
    "one name for two values": (
        lambda d: next(x for x in d["instructions"] if x["op"] == "weight")["attributes"].update(
            name=next(x for x in d["instructions"] if x["op"] == "constant")["attributes"]["name"]
        ),
        r"program: instruction \d+: .* is a \w+, and elsewhere another \w+; compile the model again",
    ),
    "half a digest": (lambda d: d["constants"].update(more="0" * 16), r"program: constants\.more: .*compile the model"),
    "another format": (lambda d: d.update(format=1), r"format 1, this version reads \d+; compile the model again"),
    "a missing shape": (lambda d: d["instructions"][0].pop("shape"), r"instructions\.0\.shape"),
    "a shape of words": (lambda d: d["instructions"][0].update(shape=["many"]), r"instructions\.0\.shape"),
}


@pytest.mark.parametrize("what", [*BAD, "", "{", "[]", "null", '"program"', "\x00\xff"])
def test_what_is_no_program_is_refused_in_one_line(program, what):
    text, message = what, "^program: "
    if what in BAD:
        change, message = BAD[what]
        data = json.loads(program.to_json())
        change(data)
        text = json.dumps(data)
    with pytest.raises(ProgramError, match=message) as caught:
        Program.from_json(text)
    assert "\n" not in str(caught.value)


def test_parts_share_names_only_of_weights_of_one_shape():
    """They are masked, sent and held once for all parts."""
    weight = Instruction(op="weight", attributes={"name": "w"}, shape=(2, 3))
    for other, accepted in (
        (replace(weight, scale=4), True),
        (replace(weight, shape=(3, 2)), False),
        (replace(weight, op="constant"), False),
    ):
        parts = {name: Program(instructions=(item,)) for name, item in (("a", weight), ("b", other))}
        with (
            nullcontext()
            if accepted
            else pytest.raises(ProgramError, match=r"w is a \w+, and elsewhere another weight")
        ):
            Program(parts=parts).check()


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(ProgramError, match=r"No such file.*give the folder that compile wrote"):
        Program.load(tmp_path / "program.json")


def test_what_a_protocol_does_not_offer_is_named_with_its_module(program):
    class Polynomial:
        name = "toy"
        supported_operations = operations().keys() - {"matmul"}

    with pytest.raises(ProgramError, match=r"layer\.0\.attention.*needs the operation matmul, which protocol toy"):
        check_offers(program, Polynomial)
    for name in ("clear", "beaver"):
        check_offers(program, find(name))


def test_weight_shapes_are_those_in_products(tiny):
    compiled = tiny("bert", "fast").compiled
    shapes = compiled.program.weight_shapes()
    assert shapes
    assert all(tuple(compiled.weights[n].shape) == s for n, s in shapes.items())
    assert all(item.op in operations() for item in compiled.program.instructions)
    assert CASES["linear"]().program.weight_shapes() == {"weight1": (7, 3)}


def test_two_compilations_give_the_same_program(tiny):
    from blindformer.models.compile import compile

    case = tiny("distilbert", "fast")
    again = compile(case.model, case.batches, case.plan, name="distilbert")
    assert again.program.hash() == case.compiled.program.hash()
    assert all(torch.equal(again.weights[n], w) for n, w in case.compiled.weights.items())


def test_instructions_and_steps_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        CLIENT.op = "other"
    with pytest.raises(ValueError, match="frozen"):
        PreludeStep(name="a", target="aten.add.Tensor").name = "other"
    assert one(CLIENT)
