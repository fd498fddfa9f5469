"""How much of its numbers an encrypted query loses, layer by layer: measured here, on typical texts."""

from __future__ import annotations

from pathlib import Path

from ...models.artifacts import ArtifactError, load_client, load_server
from ...models.artifacts.client import together
from ...models.artifacts.server import compiled_of
from ...models.encrypted import Encrypted, LayerPrecision, circuit_in
from ...models.loading.calibration_texts import calibration_texts
from ...protocols.ckks.facts import facts_from


def precision(
    folder: str | Path, length: int | None = None, texts: list[str] | None = None, *, any_ring: bool = False
) -> list[LayerPrecision]:
    """Of a compiled folder with both parts, for one length. `texts`: as many as a query takes are used (default:
    typical ones). `any_ring`: FOR TESTS ALONE.

    Errors: ArtifactError, CkksError, InputError.
    """
    client, server = load_client(folder), load_server(folder)
    length = None if client.talks else length
    mine, its = client.for_length(length), server.for_length(length)
    if its.circuit is None:
        raise ArtifactError(f"{folder}: is not compiled for encrypted queries; compile with a plan such as he")
    facts = facts_from(its.circuit.facts.to_json(), secure=not any_ring)
    number = next(number for number, item in client.lengths.items() if item is mine)
    chosen = (texts or calibration_texts(mine.texts))[: mine.texts]
    questions = [client.encode(text, number, truncate=True) for text in client.task.typical(chosen)]
    encrypted = Encrypted(compiled_of(mine, its, server.plan), (circuit_in(its, facts), facts.parameters))
    return encrypted.precision_by_layer(together(questions))
