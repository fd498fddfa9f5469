"""Semantic search: documents become vectors by private queries, once; questions are ranked against them here.

The other parties learn of a document, and of a question, what they learn of any query: that there is one, and the
length that it is padded to. So they see how many documents are new since the last time. Which document was found, and
how near, they do not see: vectors are compared here, in the clear. A question that equals a document is asked all the
same, or the query that is missing would tell.

The index holds vectors and the SHA-256 of texts, and no text. A vector tells most of what its text says, and the hash
confirms a guess: the index is as secret as the documents, and only its owner can read it (0600).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...files import whole_file
from ...models.artifacts.layout import versions
from ...protocols.errors import BlindformerError
from .base import BaseClient
from .session import ClientError

_FORMAT = "blindformer-index-1"
_SAVED_AFTER = 256  # new vectors, and a quarter of the index: what a crash loses at most
_TASK = "sentence-embedding"


class SearchHit(NamedTuple):
    """`place`: of the document in the texts that the index was given. `score`: the cosine."""

    place: int
    score: float


class IndexUpdate(NamedTuple):
    """`embedded`: documents that were asked for, the others were known. `errors`: by place, of those left out."""

    embedded: int
    errors: dict[int, BlindformerError]


class SearchIndex:
    """Search documents by meaning. Each text is embedded once, and its vector kept in a file.

        with bf.Client("local", folder="compiled") as client:
            index = bf.SearchIndex(client, "documents.index")
            index.update(documents)
            for hit in index.search("How can I pay?"):
                print(f"{hit.score:.3f}", documents[hit.place])

    client   of a sentence embedding model; its `truncate` decides about long texts
    file     where vectors are kept (default: nowhere); it belongs to one model

    Raises ClientError, and the errors of queries.
    """

    def __init__(self, client: BaseClient, file: str | Path | None = None) -> None:
        if client.part.talks or client.task != _TASK:
            raise ClientError(f"{client.part.name}: search is for models of {_TASK}, and this is of {client.task}")
        self.client, self.file = client, None if file is None else Path(file)
        self._model = _digest(client)
        self._known: dict[bytes, Tensor] = {} if self.file is None else _read(self.file, self._model)
        self._places: list[int] = []
        self._vectors = torch.zeros(0, 0)

    def update(self, texts: Sequence[str]) -> IndexUpdate:
        """Set the documents. New texts are queried, others forgotten; an interrupted update resumes at the next
        call."""
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        first = dict(zip(reversed(digests), range(len(digests) - 1, -1, -1), strict=True))  # equal texts are asked once
        new = [place for digest, place in sorted(first.items(), key=lambda item: item[1]) if digest not in self._known]
        faults: dict[bytes, BlindformerError] = {}
        before = len(self._known)
        self._known = {digest: self._known[digest] for digest in first if digest in self._known}
        unsaved = 0
        try:
            for number, result in self.client.stream([texts[place] for place in new]):
                digest = digests[new[number]]
                if result.error is not None:
                    faults[digest] = result.error
                    continue
                self._known[digest] = torch.tensor(result.value)
                unsaved += 1
                if unsaved >= max(_SAVED_AFTER, len(self._known) // 4):
                    unsaved = self._save()
        finally:
            if unsaved or len(self._known) != before:
                self._save()
        self._places = [place for place, digest in enumerate(digests) if digest in self._known]
        if self._places:
            self._vectors = torch.stack([self._known[digests[place]] for place in self._places])
        errors = {place: faults[digest] for place, digest in enumerate(digests) if digest in faults}
        return IndexUpdate(len(new) - len(faults), errors)

    def search(self, question: str, top: int = 5) -> list[SearchHit]:
        """Return the nearest documents, the nearest first."""
        if not self._places:
            raise ClientError("search: the index holds no documents; call update with some first")
        cosines = self._vectors @ torch.tensor(self.client.query(question).value)
        order = cosines.sort(descending=True, stable=True).indices[:top].tolist()
        return [SearchHit(self._places[row], float(cosines[row])) for row in order]

    def _save(self) -> int:
        if self.file is None:
            return 0
        digests = torch.frombuffer(bytearray(b"".join(self._known)), dtype=torch.uint8).reshape(-1, 32)
        tensors = {"digests": digests, "vectors": torch.stack([*self._known.values()])} if self._known else {}
        try:
            with whole_file(self.file) as stream:
                stream.write(save(tensors, {"format": _FORMAT, "model": self._model}))
        except OSError as error:
            raise ClientError(f"{self.file}: cannot be written ({error.strerror}); name another index") from None
        return 0


def _digest(client: BaseClient) -> str:
    """What makes vectors comparable: the files of the client's part, its adapter, and how long texts are read."""
    all_of_it = [versions(client.part.folder)["files"], client.settings.client.adapter, client.truncate]
    return hashlib.sha256(json.dumps(all_of_it, sort_keys=True).encode()).hexdigest()


def _read(file: Path, model: str) -> dict[bytes, Tensor]:
    """Vectors by their texts' digests; none if there is no file. Errors: ClientError."""
    if not file.exists():
        return {}
    try:
        with safe_open(file, "pt") as stored:
            about = stored.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ClientError(f"{file}: is no index of this version; name another, or delete it")
            if about.get("model") != model:
                raise ClientError(f"{file}: is another model's index; name another, or delete it")
            if not stored.keys():
                return {}
            digests, vectors = stored.get_tensor("digests"), stored.get_tensor("vectors")
    except (OSError, SafetensorError):
        raise ClientError(f"{file}: is no index that can be read; name another, or delete it") from None
    if digests.shape != (len(vectors), 32) or vectors.ndim != 2 or not vectors.isfinite().all():
        raise ClientError(f"{file}: is damaged; delete it, and it is made anew")
    return dict(zip(map(bytes, digests.numpy()), vectors.unbind(), strict=True))
