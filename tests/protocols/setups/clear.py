"""clear: one process."""

from blindformer.models.program.interpreter import interpret
from blindformer.protocols.clear import ClearEngine


def run(case):
    return interpret(case.program, ClearEngine(case.sources)).outputs
