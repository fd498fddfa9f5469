"""Clients of models that never see the question: `Client` asks in sessions, `EncryptedClient` with ciphertexts.

client = bf.Client("server.example:7443", dealer="dealer.example:7444", folder="compiled/client")
result = client.query("nobody reads this")
print(result.value, result.report)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.artifacts import load_client
from ...models.loading.truncation import Truncation
from ...protocols.ckks.parameters import CkksError
from ..config import Settings, load_settings
from ..launch import LOCAL
from ..reports.report import Report, phases_in_words, requests_in_words
from ..session.online import Progress
from ..session.two_party_client import UseSpool
from .base import BaseClient
from .forms import answer_to
from .sessions import SessionTransport
from .talk import converse, streamed
from .transport import ClientError

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion, Conversation
    from ..session.part_runs import OnPass

File = str | Path

# What an argument of a client overrides in the configuration, and its type there.
_OVERRIDES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "server": ("parties.server.address", str),
    "dealer": ("parties.dealer.address", str),
    "helper": ("parties.helper.address", str),
    "protocol": ("session.protocol", str),
    "topology": ("session.topology", str),
    "timeout": ("session.timeout", float),
    "certificates": ("certificates.folder", Path),
    "folder": ("client.folder", Path),
    "cache": ("client.cache", Path),
    "spool": ("client.spool", Path),
    "wait": ("client.wait", float),
}


class Client(BaseClient):
    """The data's owner. Sessions are opened when they are needed and kept until `close`; or use `with`.

    server         "host:port"; or "local": dealer and server run on this machine, as two processes of their own
    dealer         "host:port"
    folder         what compile wrote: DIR/client, or DIR (which "local" needs, for the server's part)
    certificates   the folder with ca.pem, client.pem and client.key
    config         a blindformer.toml; what is given here goes over it
    topology       "dealer"; or "helper": a second server does the client's part, and this side only splits its data
    length         tokens to pad texts to (default: the least compiled length that fits)
    truncate       a longer text: "off": it is refused; "end": its end is cut off; "start": its beginning. True is "end"
    timeout        seconds that a party may be silent
    wait           seconds to go on asking a server that is busy, or that comes back after a session was lost
    cache          a folder for masked weights, so that they travel once (default: the configuration's; "local": none)
    spool          a folder of preprocessed correlations; `use_spool`: "auto", "only" those, or "off"
    progress       called with (phase, done, total)

    A query goes out once. If its session is lost it is asked again, once, in a new session with fresh correlations, and
    `Result.retried` says so; a server that is busy has not taken it yet and is asked again for `wait` seconds.

    Errors: ConfigError, ArtifactError; of queries: InputError, PeerError, SlotsBusy, LimitReached, SpoolError,
    AnswerOutOfRange.
    """

    protocol = "beaver"

    def __init__(
        self,
        server: str | None = None,
        *,
        dealer: str | None = None,
        helper: str | None = None,
        folder: File | None = None,
        certificates: File | None = None,
        config: File | None = None,
        topology: str | None = None,
        length: int | None = None,
        truncate: Truncation | bool = "off",
        timeout: float | None = None,
        wait: float | None = None,
        cache: File | None = None,
        spool: File | None = None,
        use_spool: UseSpool = "auto",
        progress: Progress | None = None,
    ) -> None:
        local = server == LOCAL
        settings = client_settings(
            config, protocol=self.protocol, server=None if local else server, dealer=dealer, helper=helper,
            topology=topology, folder=folder, certificates=certificates, timeout=timeout, wait=wait, cache=cache,
            spool=spool,
        )  # fmt: skip
        if local and (settings.session.topology != "dealer" or dealer or helper or certificates):
            raise ClientError('"local" starts a dealer and a server itself: leave addresses and certificates out')
        _check_addresses(settings.session.topology, dealer, helper)
        if use_spool == "only" and settings.client.spool is None:
            raise ClientError('use_spool="only" needs a folder of correlations: give spool')
        kept = None if local and cache is None else settings.client.cache
        part = load_client(settings.client.folder)
        super().__init__(
            SessionTransport(settings, part, local=local, cache=kept, use_spool=use_spool, progress=progress),
            length,
            truncate,
        )

    def conversation(self, told: OnPass | None = None) -> Conversation:
        """With a model compiled with --chat: `say`, `complete`; what was read stays read. `told`: of each pass.

        A lost session is replaced as for queries, and what was said is read again. After an error the conversation
        goes on with the next message. Errors: ClientError, and those of a session.
        """
        assert isinstance(self._transport, SessionTransport)
        return converse(self._transport, told)

    def chat(
        self, messages: Sequence[dict[str, str]], *, stream: bool = False, **options: Any
    ) -> Completion | Iterator[str]:
        """The answer to the last of the messages, [{"role": "user", "content": "..."}, ...]; with `stream`, in pieces.

        One conversation is kept: messages that begin as before are not read again, unless its session was lost. After
        an error, ask again; of an answer that broke off nothing is kept but what was yielded.
        `options`: those of transformers' `generate`, such as max_new_tokens, temperature, do_sample,
        prompt_lookup_num_tokens.
        """
        return (streamed if stream else answer_to)(self.talk, messages, **options)

    @property
    def who(self) -> str:
        alone = self.settings.session.topology == "dealer"
        who = "two parties" if alone else "two servers that must not collude"
        return f"{who} and an offline dealer, semi-honest, 128 bits   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return f"{'on average: ' if len(reports) > 1 else ''}{phases_in_words(reports)}"


def _check_addresses(topology: str, dealer: str | None, helper: str | None) -> None:
    """Errors: ClientError if the only address that is given beside the server's is dialled in the other topology."""
    dialled, other = (helper, dealer) if topology == "helper" else (dealer, helper)
    if other and not dialled:
        given = "dealer" if topology == "helper" else "helper"
        what = f"{given}: a client of topology {topology} dials none"
        raise ClientError(f"{what}; give topology {given} (--topology {given}), or the address of the {topology}")


class EncryptedClient(BaseClient):
    """The texts' owner. Keys are made when they are needed, and forgotten by both sides at `close`; or use `with`.

    client = bf.EncryptedClient("server.example:7443", folder="compiled/client", certificates="certs")
    print(client("nobody reads this"))

    server         "host:port"; or "local": a server on this machine, as a process of its own
    folder         what compile wrote with a plan of sums and products: DIR/client, or DIR (which "local" needs)
    certificates   the folder with ca.pem, client.pem and client.key
    config         a blindformer.toml; what is given here goes over it
    length         tokens to pad texts to (default: the least compiled length that fits)
    truncate       a longer text: "off": it is refused; "end": its end is cut off; "start": its beginning. True is "end"
    timeout        seconds that the server may be silent
    wait           seconds to go on asking a server that is busy, or that comes back
    keys           a folder to keep secret keys in, so that evaluation keys travel once (default: new ones each time)
    progress       called with (phase, done, total)
    layer          called with the name of the model's module that the server works on, as it gets on

    Several texts share a request, as many as the program takes. A request that is lost is encrypted anew and sent
    again, once.

    No reply is decrypted before the last request was answered: what decrypts badly, and what is done about it, cannot
    show in what the server sees of these requests. A server that stays busy is the error of all results of a request.

    Errors: ConfigError, ArtifactError, CkksError; of queries: InputError, PeerError, SlotsBusy, LimitReached,
    AnswerOutOfRange.
    """

    protocol = "ckks"

    def __init__(
        self,
        server: str | None = None,
        *,
        folder: File | None = None,
        certificates: File | None = None,
        config: File | None = None,
        length: int | None = None,
        truncate: Truncation | bool = "off",
        timeout: float | None = None,
        wait: float | None = None,
        keys: File | None = None,
        progress: Progress | None = None,
        layer: Callable[[str], None] | None = None,
        any_ring: bool = False,
    ) -> None:
        """`any_ring`: FOR TESTS ALONE: parameters below 128 bits, too."""
        if find_spec("tenseal") is None:
            raise CkksError("protocol ckks: tenseal is missing; run: pip install 'blindformer[he]'")
        from .https import HttpsTransport

        local = server == LOCAL
        settings = client_settings(
            config, protocol=self.protocol, server=None if local else server, folder=folder,
            certificates=certificates, timeout=timeout, wait=wait,
        )  # fmt: skip
        if local and (certificates or keys):
            raise ClientError('"local" starts a server itself, with new keys: leave certificates and keys out')
        kept = None if keys is None else Path(keys).expanduser()
        part = load_client(settings.client.folder)
        super().__init__(
            HttpsTransport(settings, part, local=local, keys=kept, progress=progress, layer=layer, any_ring=any_ring),
            length,
            truncate,
        )

    @property
    def who(self) -> str:
        degree = max(part.circuit.facts.parameters.degree for part in self.part.lengths.values() if part.circuit)
        return f"one server, which computes on ciphertexts   CKKS, N = {degree}, 128 bits   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return requests_in_words(reports)


@contextmanager
def conversation(folder: File, told: OnPass | None = None, **options: Any) -> Iterator[Conversation]:
    """With a served model, or with parties of this machine (server="local"). `options`: those of `Client`."""
    with Client(folder=folder, **options) as client:
        yield client.conversation(told)


def client_settings(config: File | None, protocols: Collection[str] | None = None, /, **given: object) -> Settings:
    """The configuration, and what was given over it. `protocols`: as of `load_settings`. Errors: ConfigError."""
    over = {_OVERRIDES[name][0]: _OVERRIDES[name][1](value) for name, value in given.items() if value is not None}
    return load_settings(None if config is None else Path(config), protocols, **over)
