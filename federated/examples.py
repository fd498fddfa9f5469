"""The examples that a client trains on: its part of a public data set, or its own file or folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.data import DataError, Dataset, Examples, load_data
from ..models.data.files import read_file
from ..models.data.load import cleaned
from ..models.loading.media import media_files, open_image
from .settings import FederateError, FederateSettings

# How a data set's training part is dealt out to clients: all alike, or with classes in unequal shares.
#
# T.-M. H. Hsu, H. Qi, M. Brown, arXiv:1909.06335, section 3: each class is divided among the clients by a draw from a
# Dirichlet distribution. Every party that knows the seed finds the same shares.

LEAST = 2  # examples of a client
_TRIES = 100


def deal(labels: Sequence[int], clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Positions of each client's examples, disjoint and together all of them. alpha 0: all alike.

    Errors: FederateError if there are too few examples for so many clients.
    """
    if len(labels) < LEAST * clients:
        raise FederateError(f"{clients} clients: there are {len(labels)} examples to share; give fewer clients")
    random = np.random.default_rng((seed, clients))
    if alpha == 0:
        return [sorted(part.tolist()) for part in np.array_split(random.permutation(len(labels)), clients)]
    for _ in range(_TRIES):
        parts = _dirichlet(np.asarray(labels), clients, alpha, random)
        if min(map(len, parts)) >= LEAST:
            return parts
    raise FederateError(
        f"alpha {alpha:g}: some of {clients} clients always had fewer than {LEAST} examples; raise "
        "alpha, or use fewer clients"
    )


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, random: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(clients, alpha))
        ends = np.round(np.cumsum(shares)[:-1] * len(places)).astype(int)
        for client, part in enumerate(np.split(places, ends)):
            parts[client] += part.tolist()
    return [sorted(part) for part in parts]


PARTITION, OWN, NAME = "partition-id", "data", "name"
"""Keys of a node's configuration: its part's number, or the path of its own examples; and what it is called."""
TABLE = ("text", "label", "encoding")
"""More keys, for a table of its own: its columns, unless they have usual names, and its encoding."""


def dataset_of(settings: FederateSettings) -> Dataset:
    """The data set that the settings name. Errors: DataError."""
    table: dict[str, Any] = {key: getattr(settings, key) or None for key in TABLE}
    return load_data(settings.data, seed=settings.seed, skip_bad=settings.skip_bad, **table)


class ExampleSource:
    """Where clients' examples come from. Keeps what it has read: clients of one process share a data set."""

    def __init__(self, dataset: Dataset | None = None) -> None:
        self._dataset = dataset
        self._parts: list[list[int]] = []

    def examples(
        self, node: Mapping[str, Any], settings: FederateSettings, labels: Sequence[str], side: int
    ) -> Examples:
        """Errors: DataError, FederateError."""
        number = part_of(node, settings)
        if number is None:
            table: dict[str, Any] = {key: str(node[key]) for key in TABLE if key in node}
            table["skip_bad"] = settings.skip_bad
            return own_examples(Path(str(node[OWN])), labels, side, **table)
        if self._dataset is None:
            self._dataset = dataset_of(settings)
        if not self._parts:
            self._parts = deal(self._dataset.train.labels, settings.clients, settings.alpha, settings.seed)
        return self._dataset.train.take(self._parts[number])


def part_of(node: Mapping[str, Any], settings: FederateSettings) -> int | None:
    """The number of its part of the data set; None for a client with examples of its own. Errors: FederateError."""
    if OWN in node:
        return None
    if PARTITION not in node:
        raise FederateError(f"has neither {PARTITION} nor {OWN} in its configuration; give it one")
    number = int(node[PARTITION])
    if not 0 <= number < settings.clients:
        raise FederateError(f"partition {number}: there are {settings.clients} clients; use 0 and up")
    return number


def client_name(node: Mapping[str, Any], node_id: int) -> str:
    """What a client is called in reports: its name, or its part's number."""
    if NAME in node:
        return str(node[NAME])
    return f"client {node[PARTITION]}" if PARTITION in node else f"node {node_id}"


def own_examples(path: Path, labels: Sequence[str], side: int, **table: Any) -> Examples:
    """All examples of a table of texts, or of a folder with a folder of images for each label. `table`: of read_file.

    Errors: DataError for what cannot be read, or labels that the server does not have.
    """
    path = path.expanduser()
    index = {name.casefold(): i for i, name in enumerate(labels)}

    def number(name: str) -> int:
        if name.casefold() not in index:
            raise DataError(f"{path}: label {name!r} is none of the server's: {', '.join(labels[:8])}")
        return index[name.casefold()]

    if side == 0:
        rows = read_file(path, **table)
        if not isinstance(rows.inputs, list):
            raise DataError(f"{path}: holds images, the model takes texts")
        return Examples([cleaned(text) for text in rows.inputs], [number(rows.names[i]) for i in rows.labels])
    if not path.is_dir():
        raise DataError(f"{path}: is no folder; give one with a folder of images for each label")
    images, numbers = [], []
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        for file in media_files("image", [folder]):
            grey = open_image(file).convert("L").resize((side, side))
            images.append(torch.from_numpy(np.asarray(grey).copy()))
            numbers.append(number(folder.name))
    empty = torch.empty((0, side, side), dtype=torch.uint8)
    return Examples(torch.stack(images) if images else empty, numbers)
