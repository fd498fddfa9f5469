"""The settings of a deployment: one TOML file that all parties may share, read with flags over file over default.

    [session]                       the same at every party, the timeout aside; compared by hash in the hello
    [crypten.parties.NAME]          likewise, with protocol crypten: who takes part, and what each owns
    addresses                       each party's own view of the network: a tunnel or NAT gives others
    [certificates], [server], ...   each party's own

docs/blindformer.toml shows every key with its default. A key that is not known is an error, not a surprise later.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
)

from ..levels import is_device
from ..models.loading.truncation import Truncation
from ..protocols.errors import BlindformerError
from . import retired
from .addresses import FORM, Address, parse_address
from .launch import LOCAL, NO_DEALER
from .registry import DEFAULT, deployed, find, served, served_with
from .transport.frames import PRINTABLE

Role = Literal["server", "client", "dealer", "helper"]
UseStore = Literal["auto", "only", "off"]


class ConfigError(BlindformerError):
    """The configuration cannot be used. `problems`: each fault on a line of its own; the message is the first."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)


def _listening(value: Any) -> Address:
    if isinstance(value, tuple) and len(value) == 2:
        return Address(*value)
    if not isinstance(value, str):
        raise ValueError(FORM)
    return parse_address(value)


def _dialled(value: Any) -> Address:
    address = _listening(value)
    if address.port == 0:
        raise ValueError("port 0 cannot be dialled; ports are 1 to 65535")
    return address


def _served(value: Any) -> Any:
    return value if value == LOCAL else _dialled(value)


def _path(value: Any, info: ValidationInfo) -> Path:
    """Absolute; a relative one is relative to the file's folder (to the working folder if there is no file)."""
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("should be a path in quotes")
    return ((info.context or {}).get("base") or Path.cwd()) / Path(value).expanduser()


def _deployed(value: Any) -> str:
    known = [f"'{name}'" for name in deployed()]
    if not isinstance(value, str) or value not in deployed():
        raise ValueError(f"should be {', '.join(known[:-1])} or {known[-1]}")
    return value


def _device(value: Any) -> str:
    if not is_device(value):
        raise ValueError("should be 'cpu', 'cuda', or a GPU by its number, such as 'cuda:1'")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([0-9a-f]{64})?", value):
        raise ValueError("should be 64 hexadecimal digits, as `blindformer serve` prints them")
    return value


Listening = Annotated[Address, BeforeValidator(_listening), PlainSerializer(str)]
Dialled = Annotated[Address, BeforeValidator(_dialled), PlainSerializer(str)]
Served = Annotated[Address | Literal["local"], BeforeValidator(_served), PlainSerializer(str)]
Folder = Annotated[Path, BeforeValidator(_path), PlainSerializer(str)]
Device = Annotated[str, BeforeValidator(_device)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class _Section(BaseModel):
    """A table of the file. The text below a setting is also its help on the command line (cli/options.py)."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class SessionSection(_Section):
    """The settings that all parties of a session must share; `audits` those of server and client. Except `timeout`:
    seconds of silence after which a peer counts as dead."""

    protocol: Annotated[str, BeforeValidator(_deployed)] = DEFAULT
    topology: Literal["dealer", "helper", "pair"] = "dealer"
    audits: float = Field(default=0.0, ge=0, le=0.75, allow_inf_nan=False)
    """Fraction of runs that audit the client (default: none)."""
    timeout: Seconds = 60.0


class ServerAddress(_Section):
    address: Dialled = Address("localhost", 7443)


class DealerAddress(_Section):
    address: Dialled = Address("localhost", 7444)


class HelperAddress(_Section):
    address: Dialled = Address("localhost", 7445)


class PartiesSection(_Section):
    """Where the parties that listen are dialled. A client only dials, so it may sit behind NAT."""

    server: ServerAddress = ServerAddress()
    dealer: DealerAddress = DealerAddress()
    helper: HelperAddress = HelperAddress()


class CertificatesSection(_Section):
    """`folder` holds ca.pem, and this party's own certificate and key."""

    folder: Folder = Path("certs")


class ServiceSection(_Section):
    """The settings of every long-lived service. The numbers bound its resources, whatever its peers do."""

    listen: Listening = Address("127.0.0.1", 0)
    """HOST:PORT to listen at; port 0 takes a free one."""
    workers: int | None = Field(default=None, ge=1, le=1024)
    """Queries that compute at once (default: one for each core)."""
    sessions: int = Field(default=32, ge=1, le=10_000)
    """The most sessions that may be open."""
    queue: int = Field(default=64, ge=0, le=100_000)
    """Queries that may wait for a worker; beyond that a client is told when to retry."""
    share: float = Field(default=0.15, gt=0, le=1, allow_inf_nan=False)
    """The part of the sessions and of the queue that one certificate may hold."""
    idle: Seconds = 600.0
    """Seconds that a session may be silent between two queries."""
    query_seconds: Seconds = 900.0
    """Seconds that a query may hold a worker, however slowly its peer answers."""
    memory_gb: float = Field(default=16.0, gt=0, le=1e6, allow_inf_nan=False)
    """Gigabytes of memory that a session may take, beyond what the service has loaded."""
    metrics: Listening | None = None
    """HOST:PORT for /metrics, /healthz and /readyz (default: nowhere)."""
    grace: float = Field(default=30.0, ge=0, le=86400, allow_inf_nan=False)
    """Seconds that running queries have when the service is told to stop."""
    log_format: Literal["text", "json"] = "text"
    """How the log is written on stderr."""


class ServerSection(ServiceSection):
    folder: Folder = Path("compiled/server")
    device: Device = "cpu"
    """Where it computes: cpu, cuda, or one of several GPUs, such as cuda:1."""
    adapters: dict[str, Folder] = {}  # by name, those that were compiled elsewhere: their server's parts
    listen: Listening = Address("127.0.0.1", 7443)
    store: Folder | None = None
    """The folder of the preprocessing store (default: none)."""
    store_gb: float = Field(default=20.0, gt=0, le=1e6, allow_inf_nan=False)
    """Gigabytes that the store may take; `share` of it is for one certificate."""
    store_days: float = Field(default=30.0, gt=0, le=36500, allow_inf_nan=False)
    """Days after which unused correlations go, once others are to be stored: their client may have lost its part."""
    database: str | None = None
    """The Postgres database that servers share, postgresql://HOST/NAME, with the ledger of their store and the
    count of queries (default: files in store and state)."""
    queries_each: int | None = Field(default=None, ge=1, le=10**12)
    """Texts that may be asked with one certificate's name in a period (default: any number)."""
    queries_period: float = Field(default=86400.0, gt=0, le=315360000, allow_inf_nan=False)
    """Seconds of the period in which the texts of a name are counted."""
    state: Folder | None = None
    """The folder that keeps the count of each name's texts over restarts (default: none)."""
    # Protocol ckks.
    keys_gb: float = Field(default=16.0, gt=0, le=1e6, allow_inf_nan=False)
    """Gigabytes of disk that clients' evaluation keys may take."""
    keys_memory_gb: float = Field(default=8.0, gt=0, le=1e6, allow_inf_nan=False)
    """Gigabytes of memory, for each worker, in which sessions keep evaluation keys between queries."""
    keys_seconds: float = Field(default=86400.0, gt=0, le=31536000, allow_inf_nan=False)
    """Seconds of no use after which a client's evaluation keys are deleted."""
    weights_memory_gb: float = Field(default=4.0, ge=0, le=1e6, allow_inf_nan=False)
    """Gigabytes of memory that encoded weights may take; the others are encoded for each query."""
    query_processes: int = Field(default=1, ge=1, le=256)
    """Processes that share the ciphertexts of one query; with few clients, one for each core."""


class DealerSection(ServiceSection):
    folder: Folder | None = None  # the dealer's part of a delegated model
    device: Device = "cpu"
    """Where it computes: cpu, cuda, or one of several GPUs, such as cuda:1."""
    listen: Listening = Address("127.0.0.1", 7444)
    share: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)  # servers hold its sessions: often one server


class HelperSection(ServiceSection):
    """The second server of topology "helper": it computes in the client's place."""

    folder: Folder = Path("compiled/helper")
    device: Device = "cpu"
    """Where it computes: cpu, cuda, or one of several GPUs, such as cuda:1."""
    adapters: dict[str, Folder] = {}  # as of the server
    listen: Listening = Address("127.0.0.1", 7445)
    store: Folder | None = None
    cache: Folder = Path("~/.cache/blindformer")
    """The folder that the server's masked weights are kept in."""


class ClientSection(_Section):
    folder: Folder = Path("compiled/client")
    device: Device = "cpu"
    """Where it computes: cpu, cuda, or one of several GPUs, such as cuda:1."""
    adapter: str = ""
    """Name of an adapter in the folder; of a public model, your adapter's folder (default: none)."""
    pad: bool = False
    """Hide how much of a public model is read and said: rows of each pass are filled up to a power of two, and the
    passes of a conversation to a multiple of 16 after each answer."""
    memory: str = ""
    """Memory for layers of a public model that the client computes itself, such as 200MB (default: none)."""
    store: Folder | None = None
    """The folder of the preprocessing store (default: the file's, else none)."""
    use_store: UseStore = "auto"
    """What is used: those of the folder first, then live ones (auto); no others (only); live ones (off)."""
    cache: Folder = Path("~/.cache/blindformer")
    """The folder that the masked weights of known models are kept in."""
    commitment: Annotated[str, BeforeValidator(_digest)] = ""
    """The commitment to the weights that the server must have, as it says at its start (default: any weights do)."""
    wait: float = Field(default=60.0, ge=0, le=86400, allow_inf_nan=False)
    """Seconds to go on asking a server that is busy."""


Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class PricesSection(_Section):
    """The prices of receipts, by party: server, client, dealer, helper. A party without a price costs nothing."""

    currency: str = Field(default="", max_length=16, pattern=PRINTABLE)
    cpu_hour: dict[Role, Price] = {}
    gb: dict[Role, Price] = {}
    watts: float = Field(default=10.0, ge=0, le=1e4, allow_inf_nan=False)


class GatewayModel(_Section):
    """One model of the gateway, [gateway.models.NAME]; what is not said is as in [parties] and [certificates]."""

    folder: Folder
    adapter: str = ""
    """Of those in the folder (default: the base is offered as NAME, and each adapter by its own name). Of a public
    model: the folder of an adapter of one's own."""
    server: Served | None = None
    """Or "local": a server and a dealer on this machine, while the gateway runs."""
    dealer: Dialled | None = None
    helper: Dialled | None = None
    certificates: Folder | None = None


class GatewayLimits(_Section):
    """What one person may ask, [gateway.people.NAME]; what is not said is as in [gateway]. None: any number."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    tokens_per_day: int | None = Field(default=None, ge=1, le=10**12)


class GatewaySection(GatewayLimits):
    """The OpenAI API on the client's machine. Without models it offers the one of [client]. Limits are of each person
    with a key of its own."""

    listen: Listening = Address("127.0.0.1", 8080)
    """HOST:PORT to listen at; port 0 takes a free one."""
    key: Folder = Path("~/.config/blindformer/gateway.key")
    """The file of the key that callers show, made if need be (default: gateway.key in ~/.config/blindformer)."""
    keys: Folder = Path("~/.config/blindformer/gateway.keys")
    """The file of persons' keys, which `blindformer keys` writes (default: gateway.keys in ~/.config/blindformer)."""
    people: dict[str, GatewayLimits] = {}
    state: Folder = Path("~/.config/blindformer/gateway-state")
    """The folder that keeps the count of each person's tokens over restarts (default: gateway-state in
    ~/.config/blindformer)."""
    metrics: Listening | None = None
    """HOST:PORT for /metrics, /healthz and /readyz without a key (default: nowhere)."""
    log_format: Literal["text", "json"] = "text"
    """How the log is written on stderr."""
    hosts: tuple[str, ...] = Field(default=(), strict=False)
    """Names that it is called by, besides localhost: behind a proxy."""
    queue: int = Field(default=64, ge=0, le=100_000)
    """Requests that may wait for a model; beyond that callers are told when to retry."""
    truncate: Truncation = "off"
    """Where a text is cut that is too long, unless the request says."""
    conversations: int = Field(default=1, ge=1, le=64)
    """Requests of a model that are answered at once, each in a session of its own. A language model keeps as many
    conversations, each with masked weights."""
    models: dict[str, GatewayModel] = {}


class PartySection(_Section):
    """One party of protocol `crypten`. `address`: where those after it dial it; the last is dialled by nobody."""

    address: Dialled | None = None
    owns: tuple[str, ...] = Field(default=(), strict=False)
    """"model", "data" (all inputs that nobody else is named for), or inputs of the model by name."""
    answers: bool = False
    """Whether it gets the answers."""
    listen: Listening | None = None
    """Its own matter, as the folder; None: at `address`."""
    folder: Folder = Path("compiled")
    """A compiled folder, or its part of it."""
    device: Device = "cpu"
    threads: int = Field(default=1, ge=1)
    """Threads that it computes with."""


class CryptenSection(_Section):
    """Protocol `crypten`: [crypten.parties.NAME] in order. The first owns the model, unless another is said to."""

    length: int | None = Field(default=None, ge=1)
    """Tokens, where several lengths are compiled: a session runs one program."""
    wait: Seconds = 60.0
    """Seconds for the other parties to come."""
    parties: dict[str, PartySection] = {}


class Settings(_Section):
    """A whole configuration, with every path absolute. Made by `load_settings`, or of the values of another one
    (`model_dump`, with its `file` in the context)."""

    session: SessionSection
    parties: PartiesSection
    certificates: CertificatesSection
    server: ServerSection
    dealer: DealerSection
    helper: HelperSection
    client: ClientSection
    gateway: GatewaySection
    crypten: CryptenSection
    prices: PricesSection
    _file: Path | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any) -> None:
        self._file = (context or {}).get("file")

    @property
    def file(self) -> Path | None:
        """The file these settings come from; None if there is none."""
        return self._file

    def address(self, role: Role) -> Address:
        """Where `role` is dialled. Errors: ValueError for the client, which nobody dials."""
        if role == "client":
            raise ValueError("a client only dials; nobody dials it")
        return getattr(self.parties, role).address

    def shared(self) -> dict[str, Any]:
        """The settings that all parties must share: protocol and topology.

        Not addresses: one party dials another behind NAT, through a tunnel or as a service of a cluster by an address
        of its own, and certificates say who it is. Not the timeout: it is each party's own patience. Not audits: server
        and client name them in the hello, and the dealer needs no setting of them.
        """
        return {"session": self.session.model_dump(mode="json", exclude={"timeout", "audits"})}

    def shared_hash(self) -> str:
        """SHA-256 (hex) of `shared`, flags included; empty without a file, which a hello takes for "not compared"."""
        if self._file is None:
            return ""
        text = json.dumps(self.shared(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load_settings(path: Path | None = None, protocols: Collection[str] | None = None, /, **flags: Any) -> Settings:
    """Settings of the file at `path`, under `flags`, over the defaults.

    Flags are named by their key ("server.listen"), so call with `**{"server.listen": "0.0.0.0:7443"}`; one that is None
    was not given. A relative path in the file is relative to the file; a `Path` among the flags to the working folder.
    `protocols`: the caller's (default: those of long-lived services); settings of another are refused.

    Errors: `ConfigError`, naming the file, the key and what is allowed.
    """
    data = {section: {} for section in Settings.model_fields} | ({} if path is None else _read(path))
    given = {key: value for key, value in flags.items() if value is not None}
    if given.get("parties.dealer.address") == NO_DEALER:
        if given.get("session.topology", "pair") != "pair":
            what = "is of topology pair alone; leave it out, or give HOST:PORT"
            raise ConfigError([f"the command line: parties.dealer.address = {NO_DEALER}: {what}"])
        given = {key: value for key, value in given.items() if key != "parties.dealer.address"}
        given["session.topology"] = "pair"
    for key, value in given.items():
        *sections, name = key.split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                break
        else:
            table[name] = value.expanduser().absolute() if isinstance(value, Path) else value
    try:
        context = {"base": path.absolute().parent, "file": path.absolute()} if path else None
        settings = Settings.model_validate(data, context=context)
    except ValidationError as error:
        raise ConfigError([_explain(fault, path, given) for fault in error.errors()]) from None
    protocol, wanted = settings.session.protocol, tuple(served() if protocols is None else protocols)
    if protocol not in wanted:
        where = "the command line" if "session.protocol" in given or path is None else path
        what = f"session.protocol = {protocol}: this is for protocol {' or '.join(wanted)}"
        raise ConfigError([f'{where}: {what}; {find(protocol).start}, or say protocol = "{wanted[0]}" there'])
    session = settings.session
    if session.topology == "pair" and protocol != DEFAULT:
        where = "the command line" if "session.topology" in given or path is None else path
        what = f"session.topology = pair: no dealer is of protocol {DEFAULT}, and this is {protocol}"
        raise ConfigError([f"{where}: {what}; leave it out (--dealer none)"])
    if session.audits and (session.topology != "dealer" or protocol not in served_with("dealer")):
        where = "the command line" if "session.audits" in given or path is None else path
        what = f"session.audits = {session.audits:g}: a server audits a client that computes, in topology dealer"
        raise ConfigError([f"{where}: {what}; leave it out"])
    return settings


def key_of(option: str, *sections: str) -> str:
    """The key, and the first of these sections that has it, in words; empty: none has."""
    key = option.removeprefix("--").replace("-", "_")
    return next((f"{key} in [{section}]" for section in sections if key in _keys([section])), "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; an example: blindformer doctor --print-config"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not TOML: {' '.join(str(error).split())}"]) from None


def _explain(fault: Any, path: Path | None, flags: dict[str, Any]) -> str:
    """One line for one fault that pydantic found."""
    parts = [str(part) for part in fault["loc"]]
    key = ".".join(parts)
    where = "the command line" if key in flags or path is None else str(path)
    if fault["type"] == "extra_forbidden":
        if instead := retired.KEYS.get(key):
            return f"{where}: {key}: {instead}"
        return f"{where}: {key}: is not a known key; {_suggest(parts)}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "model_type":
        message = f"should be a section, [{key}]"
    return f"{where}: {key} = {_short(fault['input'])}: {message}"


def _suggest(parts: list[str]) -> str:
    *sections, name = parts
    allowed = _keys(sections)
    if near := difflib.get_close_matches(name, allowed, n=1):
        return f"did you mean {'.'.join([*sections, near[0]])}?"
    homes = [section for section in Settings.model_fields if name in _keys([section])]
    if homes and homes != sections:
        return f"it belongs in [{'] or ['.join(homes)}]"
    return f"known in {'[' + '.'.join(sections) + ']' if sections else 'a file'}: {', '.join(allowed)}"


def _keys(sections: list[str]) -> list[str]:
    model: Any = Settings
    for section in sections:
        # In a table of sections the name is the user's.
        model = model.model_fields[section].annotation if hasattr(model, "model_fields") else get_args(model)[-1]
    return list(model.model_fields)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
