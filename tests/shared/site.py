"""A deployment on this machine for tests and benchmarks: a compiled model, a dealer and a server, the right answers.

`Site` is what a client's process is told; `deploy` makes it and runs the services while the context lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from blindformer.models.artifacts import load_client, save
from blindformer.models.compile import Compiled, compile
from blindformer.models.delegated import is_delegated
from blindformer.models.delegated.folder import load_part
from blindformer.models.generation.conversation import Conversation
from blindformer.models.program.interpreter import interpret
from blindformer.parties.client.delegated import DelegatedPasses, open_served
from blindformer.parties.client.session import PartyAddresses
from blindformer.parties.client.sessions import Sessions
from blindformer.parties.client.two_party import open_session
from blindformer.parties.config import load_settings
from blindformer.parties.session.online import OnPass, Progress
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.protocols.clear import ClearEngine
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .deployment import Deployment, WithoutDealer

Address = tuple[str, int]
QUESTIONS = "questions.safetensors"
# Both engines compute the same fixed point, where some roundings may go either way. A reused or damaged mask makes an
# answer uniform in the ring: its error is near 2^47.
TOLERANCE = 2.0**-6


@dataclass(frozen=True)
class Site:
    """Where the parties of one deployment are, and its questions: sources and answers, numbered, in one file. `dealer`:
    None if there is none."""

    compiled: Path
    certificates: Path
    questions: Path
    server: Address
    dealer: Address | None
    timeout: float


@dataclass(frozen=True)
class BenchQuery:
    """A query's sources (ring integers by name), and what `clear` answers (float32 by output name)."""

    sources: dict[str, Tensor]
    answer: dict[str, Tensor]


def compile_into(folder: Path, *, length: int = 8, plan: str = "faithful", queries: int = 4) -> None:
    """A BERT classifier of one layer, 32 wide, with weights from seed 0: a query takes some tens of milliseconds."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        num_labels=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(100, (1, length), generator=generator) for _ in range(12 + queries)]
    batches = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    compile_questions(folder, model, batches[:12], batches[12:], plan, name="small")


def compile_questions(
    folder: Path, model: nn.Module, calibration: list[dict[str, Tensor]], queries: list[dict[str, Tensor]], plan: str,
    *, name: str, outputs: list[str] | None = None,
) -> None:  # fmt: skip
    """Compile a model into `folder`, with `queries` as its questions, and their answers."""
    compiled = compile(model, calibration, plan, outputs=outputs, name=name)
    save(compiled, folder)
    tensors: dict[str, Tensor] = {}
    for number, inputs in enumerate(queries):
        question = answered_in_the_clear(compiled, compiled.encode_inputs(inputs))
        tensors |= {f"{number} source {name}": value.contiguous() for name, value in question.sources.items()}
        tensors |= {f"{number} answer {name}": value.contiguous() for name, value in question.answer.items()}
    save_file(tensors, folder / QUESTIONS)


def answered_in_the_clear(compiled: Compiled, sources: dict[str, Tensor]) -> BenchQuery:
    result = interpret(compiled.program, ClearEngine({**sources, **compiled.weights, **compiled.constants}))
    return BenchQuery(
        sources, compiled.decode({name: value for name, value in result.outputs.items() if value is not None})
    )


def read_questions(file: Path) -> list[BenchQuery]:
    questions: list[BenchQuery] = []
    tensors = load_file(file)
    for number in range(1 + max(int(key.split()[0]) for key in tensors)):
        parts: dict[str, dict[str, Tensor]] = {"source": {}, "answer": {}}
        for key, value in tensors.items():
            at, kind, name = key.split(" ", 2)
            if int(at) == number:
                parts[kind][name] = value
        questions.append(BenchQuery(parts["source"], parts["answer"]))
    return questions


def right(question: BenchQuery, answer: dict[str, Tensor]) -> bool:
    """Whether an answer is the one that `clear` gives."""
    return question.answer.keys() == answer.keys() and all(
        answer[name].shape == value.shape and bool(((answer[name] - value).abs() <= TOLERANCE).all())
        for name, value in question.answer.items()
    )


@contextmanager
def deploy(
    folder: Path,
    *,
    server: dict[str, Any] | None = None,
    dealer: dict[str, Any] | None = None,
    timeout: float = 20,
    apart: bool = False,
    dealt: bool = True,
) -> Iterator[tuple[Deployment, Site]]:
    """Run a dealer and a server of what `compile_into` left in `folder / "compiled"`, on free ports of this machine.

    server, dealer   more settings of theirs, {"workers": 2}
    timeout          seconds that any party may be silent
    apart            the services share no memory with this process, as to measure theirs needs
    dealt            there is a dealer
    """
    compiled, kind = folder / "compiled", Deployment if dealt else WithoutDealer
    with kind(folder, compiled, server, dealer, timeout, apart) as deployment:
        yield (
            deployment,
            Site(
                compiled,
                deployment.certificates,
                compiled / QUESTIONS,
                deployment.server.address,
                deployment.dealer.address if dealt else None,
                timeout,
            ),
        )


@contextmanager
def conversation_with(
    compiled: Path,
    server: Address,
    dealer: Address,
    certificates: Path,
    timeout: float,
    on_pass: OnPass | None = None,
    *,
    wait: float = 0.0,
    store: PreprocessingStore | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[Conversation]:
    """A conversation with these services, that goes on for `wait` seconds when one is away. `store`: whose ledger notes
    correlations; `options`: of `meet_parties`."""
    settings = load_settings(
        **{
            "parties.server.address": "{}:{}".format(*server),
            "parties.dealer.address": "{}:{}".format(*dealer),
            "certificates.folder": certificates,
            "session.timeout": float(timeout),
            "client.wait": wait,
        }
    )
    public, addresses = is_delegated(compiled), PartyAddresses(settings)
    part = load_part(compiled) if public else load_client(compiled)
    own = {} if public else {"store": store, "use_store": "off"}
    opened = partial(open_served if public else open_session, settings, addresses, part, **own, **options)
    with closing(Sessions(opened, wait, progress)) as sessions:
        sessions.passes = DelegatedPasses if public else sessions.passes
        yield sessions.conversation(part, on_pass)
