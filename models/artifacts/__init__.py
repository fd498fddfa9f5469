"""A compiled model on disk, split into what the server keeps and what the client may hold.

    DIR/server/   model.json  plan.json  tensors.safetensors     lengths/<L>/program.json, tensors.json
    DIR/client/   client.json  tokenizer or image processor      lengths/<L>/program.json, tensors.json
                  tensors.safetensors
    DIR/helper/   tensors.safetensors                            lengths/<L>/program.json, tensors.json
    DIR/*/tensors/<digest>.safetensors   a large tensor
    DIR/*/adapters/NAME                  the same part of the model with an adapter (adapters.py)

With a plan of sums and products alone, lengths/<L>/circuit.json of server and client describes encrypted queries.

A length is a number of tokens; a model of images has one program, at length 0. Tensors are stored under the digest of
their content, so those that several lengths share are stored once; each length's tensors.json says which name is which.
Large ones have a file each.
Every part has a versions.json with the size and SHA-256 of its files, written last and checked when the part is read.
Nothing is pickled.
"""

from .adapters import (
    adapter_place,
    adapters_in,
    load_with_adapters,
    programs_with_adapters,
    write_with_adapters,
)
from .circuits import CircuitPart, texts_of
from .client import ClientLength, ClientPart, Question, load_client, sources_of
from .layout import FORMAT, ArtifactError, load_programs, versions
from .server import HelperPart, ServerLength, ServerPart, load_helper, load_server
from .writing import save

__all__ = [
    "FORMAT",
    "ArtifactError",
    "CircuitPart",
    "ClientLength",
    "ClientPart",
    "HelperPart",
    "Question",
    "ServerLength",
    "ServerPart",
    "adapter_place",
    "adapters_in",
    "load_client",
    "load_helper",
    "load_programs",
    "load_server",
    "load_with_adapters",
    "programs_with_adapters",
    "save",
    "sources_of",
    "texts_of",
    "versions",
    "write_with_adapters",
]
