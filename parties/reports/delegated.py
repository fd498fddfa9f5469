"""What one pass of a delegated model sends, exactly, and how long that takes on a network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ...models.building import typical_inputs
from ...models.compile import Progress
from ...models.delegated.head import compile_head, head_of, without_head
from ...models.delegated.manifest import DelegatedModel, GroupEntry, Manifest, plan_name, ring_of
from ...models.delegated.part import example_inputs, module_of
from ...models.delegated.running import DelegatedRunner
from ...models.delegated.sequences import delegated_layers, groups_within, sequence_of
from ...models.loading.load import Loaded
from ...models.program.pricing import Network
from ..session.delegation import corrections_bytes, request_bytes
from .estimate import Estimate, estimate


@dataclass(frozen=True)
class DelegatedPrice:
    """Bytes of payload. `network_s`: of rounds and bytes alone; what the parties compute comes on top.

    layers  the pass's groups
    rows    tokens, or what stands for them
    """

    layers: int
    rows: int
    rounds: int
    up_bytes: int
    down_bytes: int
    offline_bytes: int
    network_s: float
    offline_network_s: float


def price_of_pass(
    loaded: Loaded,
    length: int,
    network: Network,
    plan: str | None = None,
    memory: float = 0,
    private_head: bool = False,
) -> DelegatedPrice:
    """Of one text of `length` tokens, or of an image or a recording; of a language model, of a pass that reads so many
    tokens. `memory`: bytes of layers that the client computes; `private_head`: whether the model's last part is left
    out. Errors: DelegationError, LoadError."""
    if private_head:
        loaded, _ = without_head(loaded, head_of(loaded.model, loaded.name))
    module, inputs = module_of(loaded), example_inputs(loaded, length)
    layers = delegated_layers(module, partial(module, **inputs))
    manifest = Manifest(
        loaded.name, tuple(GroupEntry(group.layers, "", "") for group in layers.groups), "", ring_of(plan)
    )
    runner = DelegatedRunner(module, DelegatedModel(manifest, (), (), layers.kept))
    sequence = sequence_of(runner.steps(module, (), inputs))
    if memory:
        kept = groups_within(memory, runner.groups, sequence, runner.index.parameters)
        runner.keep([layer.parameter for number in kept for layer in runner.groups[number].layers])
        sequence = sequence_of(runner.steps(module, (), inputs))
    sizes = [(group.inputs, group.outputs) for group in layers.groups]
    up, down = (bytes_of(sizes, sequence, manifest.ring) for bytes_of in (request_bytes, corrections_bytes))
    online = len(sequence) * network.rtt + (up + down) * 8 / network.bandwidth
    rows = max((rows for _, rows in sequence), default=0)
    return DelegatedPrice(
        len({group for group, _ in sequence}), rows, len(sequence), up, down, down, online, down * 8 / network.bandwidth
    )


def price_of_head(
    loaded: Loaded, length: int, network: Network, plan: str | None = None, progress: Progress | None = None
) -> Estimate:
    """Of the private session of the model's last part, which one query holds in its midst. Errors: as
    `price_of_pass`, and those of `compile`."""
    lengths = None if loaded.task.medium is not None else [length]
    typical = typical_inputs(loaded, lengths, None)
    (compiled,) = compile_head(loaded, head_of(loaded.model, loaded.name), plan_name(plan), typical, progress).values()
    return estimate(compiled, network)
