"""A compiled model from the parts of both sides, for a process that may hold both."""

from __future__ import annotations

from pathlib import Path

from ...approximations import Plan
from ..compile import Compiled
from ..lowering.structure import Structure
from .client import ClientLength, load_client
from .server import ServerLength, load_server


def compiled_of(client: ClientLength, server: ServerLength, plan: Plan) -> Compiled:
    """It answers by output name: the form of the model's own output is not on disk."""
    nowhere = Structure(None, (), (), ())
    return Compiled(server.program, server.weights, server.constants, client.tensors, client.scales, plan, nowhere)


def load_compiled(folder: Path) -> Compiled:
    """What `save` wrote of one length. Errors: ArtifactError, ProgramError."""
    server = load_server(folder)
    return compiled_of(load_client(folder).for_length(), server.for_length(), server.plan)
