"""`blindformer estimate MODEL`: the price of a private query, or of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ...errors import BlindformerError
from ...models.delegated import is_delegated
from ...versions import versions
from ..registry import DEFAULT, PRIVATE_HEAD, find, priced, protocol_for, resolve
from . import options
from .commands import Needs, Without
from .output import MB, console, mb, price_table, print_result, table
from .progress import Phases
from .steps import (
    LAN,
    OwnAdapter,
    Weights,
    cache_folder,
    check_there,
    compiling,
    for_network,
    load_model,
    loading,
    read_plan,
    read_texts,
    refuse,
    refuse_for_compiled,
    refuse_for_public,
    weights_of,
)


def _show_delegated(
    model: str,
    adapter: Path | None,
    plan: str | None,
    client_memory: str | None,
    length: int,
    network: str,
    form: options.Form,
    private_head: bool,
) -> None:
    """Of a model without private weights, or with a private head alone: what one pass sends."""
    with loading(1) as phases:
        from ...models.delegated.sequences import read_memory
        from ...models.loading.load import load
        from ..reports.estimate import find_network, price_of_head, price_of_pass

        chosen = find_network(network)
        loaded = load(model, adapter)
        price, head = price_of_pass(loaded, length, chosen, plan, read_memory(client_memory or ""), private_head), None
        phases.end("load")
        if private_head:
            with compiling(phases) as progress:
                head = price_of_head(loaded, length, chosen, plan, progress)

    def show() -> None:
        out = console()
        out.print(f"[bold]{loaded.name}[/]   {price.rows} rows a layer   public weights   network {chosen.name}\n")
        out.print(
            f"online   {price.rounds} rounds, {price.up_bytes / MB:.2f} MB to the server, "
            f"{price.down_bytes / MB:.2f} MB back: {price.network_s:.2f} s on the network\n"
            f"offline  {price.offline_bytes / MB:.2f} MB from dealer to server: {price.offline_network_s:.2f} s\n"
            "computation comes on top: at each party about as long as the model takes in the clear"
        )
        if head is not None:
            out.print(
                f"private head, on top   {head.rounds} rounds, {mb(head.online_bytes)} MB online, "
                f"{mb(head.offline_bytes)} MB from the dealer: {head.online_s:.2f} s, and {head.offline_s:.2f} s ahead"
            )

    result = {"model": model, "protocol": "delegated", "network": chosen.name, **asdict(price)}
    print_result(form, result | ({} if head is None else {"head": asdict(head)}), show)


DEFAULT_PLAN = "faithful"  # of which a program that is there takes nothing
ROLES = ("server", "client", "dealer")
LENGTH, PROMPT = 128, 32  # tokens
WHOLE, TALKS = Without("--tokens"), Needs("--tokens")
TIMED = Without(*options.among(priced()).others)  # what is priced among parties has no seconds
ALONE = Without(*WHOLE.others, *TIMED.others)


@options.grouped
def estimate(
    *,
    model: options.Model,
    length: Annotated[
        int | None, Option(min=1, help=f"Tokens of a text (default: {LENGTH}); images have none."), WHOLE
    ] = None,
    tokens: Annotated[
        int | None,
        Option(
            min=32,
            help="Estimate a conversation of this many tokens (default: one query).",
        ),
    ] = None,
    window: Annotated[options.Window, TALKS] = None,
    prompt: Annotated[int | None, Option(min=1, help=f"Tokens of the prompt (default: {PROMPT})."), TALKS] = None,
    plan: options.OwnPlan = None,
    network: Annotated[
        str,
        Option(help="lan (0.5 ms, 1 Gbit/s), wan (40 ms, 100 Mbit/s), loopback or ms,Mbit/s."),
        TIMED,
    ] = LAN,
    protocol: options.Priced = DEFAULT,
    dealer: Annotated[options.NoDealer, ALONE, Without("--audits")] = None,
    parties: Annotated[options.Parties, options.among(priced())] = 2,
    calibrate: Annotated[options.Calibrate, WHOLE] = None,
    embedding: options.Embedding = "client",
    adapter: OwnAdapter = None,
    weights: Weights = None,
    client_memory: options.ClientMemory = None,
    reveal: Annotated[options.Reveal, TALKS] = None,
    audits: Annotated[options.Audits, ALONE] = None,
    by: Annotated[options.By, ALONE] = None,
    form: options.Form = "text",
) -> None:
    """Print the bytes and rounds of one query, exactly, and its seconds on a network. Nothing is sent.

    With --tokens: of a conversation. With protocol crypten: bytes of each party and rounds, no seconds.
    """
    check_there("--calibrate", calibrate)
    check_there("--adapter", adapter)
    options.check_no_dealer(dealer, protocol)
    owners = weights_of(weights)
    if is_delegated(model):
        raise BlindformerError(f"{model}: its weights are public; give the model's own folder, and --weights public")
    if find(public := protocol_for(protocol, owners, embedding, heads=True)).as_it_is:
        of_private = {"--calibrate": calibrate, "--audits": audits, "--by": by, "--dealer": dealer}
        refuse_for_public(public, {"--tokens": tokens, **of_private})
        private_head = owners == PRIVATE_HEAD
        _show_delegated(model, adapter, plan, client_memory, length or LENGTH, network, form, private_head)
        return
    refuse_for_compiled(protocol, {"--client-memory": client_memory})
    with loading(1) as phases:
        from ...models.cached import is_compiled
        from ..reports.estimate import find_network
        from ..session.parties import numbered

        if compiled_already := is_compiled(model):
            own = {"--plan": plan, "--calibrate": calibrate, "--adapter": adapter, "--weights": weights}
            refuse(own, f"{model} is compiled already; leave it out, or give the model's own folder")
        entry = find(protocol)
        among = numbered(parties)
        chosen_network = find_network(network)
        if tokens is not None:
            if entry.parties is None:
                raise BlindformerError(f"--protocol {protocol}: prices no conversations; use --protocol {DEFAULT}")
            released = None if embedding == "client" else embedding
            settings = {"slots": tokens, "window": window, "reveal": reveal, "embedding": released}
            settings |= {"weights": owners, "adapter": adapter}
            name, used, talk = _conversation(phases, model, plan, settings, prompt or PROMPT, chosen_network)
            head = {"model": model, "plan": used, "protocol": protocol}
            show = partial(_show_conversation, name, used, protocol, talk)
            result = talk.to_dict()
        else:
            from ...models.building import check_one_pass
            from ...models.program.two_server import for_audits

            if compiled_already:
                loaded, length, plan_name, compiled = _as_compiled(model, length)
                phases.end("load")
            else:
                loaded, chosen = load_model(phases, model, plan, adapter)
                check_one_pass(loaded)
                if (medium := loaded.task.medium) is not None and length is not None:
                    what = f"{loaded.name} takes {medium.word}s, which have none"
                    raise BlindformerError(f"--length: {what}; leave it out")
                length = (length or LENGTH) if medium is None else 0
                if loaded.positions is not None and length > loaded.positions:
                    raise BlindformerError(
                        f"length {length}: the model takes {loaded.positions} tokens; lower --length"
                    )
                settings = {"embedding": embedding, "weights": owners, "adapter": adapter}
                chosen = for_network(chosen, chosen_network)
                texts = None if medium is not None else read_texts(calibrate)
                phases.end("load")
                with compiling(phases) as progress:
                    compiled = _priced(model, loaded, length, chosen, texts, calibrate, progress, **settings)
                plan_name = compiled.plan.name
            if audits:
                compiled = replace(compiled, program=for_audits(compiled.program, audits))
            phases.begin("rehearse")
            price = resolve(entry.price)(compiled, chosen_network, among)
            phases.end("rehearse")
            head = {"model": model, "length": length, "plan": plan_name, "protocol": protocol}
            show = partial(_show, by or "layer") if entry.parties else _show_many
            show = partial(show, loaded, length, plan_name, protocol, price)
            result = asdict(price)
            if dealer:
                from ..reports.pair_estimate import estimate_pair

                price.pair = estimate_pair(compiled.program, chosen_network)
                show, result = partial(_show_pair, show, price.pair), asdict(price)
            if audits:
                runs = 1 / (1 - audits)
                show, head = partial(_show_audited, show, price, audits), head | {"audits": audits, "runs": runs}
    print_result(form, {**head, **result, "versions": versions()}, show)


def _priced(
    model: str,
    loaded: Any,
    length: int,
    plan: Any,
    texts: list[str] | None,
    files: Path | None,
    progress: Any,
    adapter: Path | None = None,
    **options: Any,
) -> Any:
    """The model, compiled for its price alone: no weights are kept or read. Of texts once, and found in the user's
    cache afterwards. `adapter`: that it is loaded with."""
    from ...models.artifacts import ArtifactError, load_programs, save
    from ...models.building import compile_alike, compile_lengths, typical_inputs
    from ...models.cached import cached, marks_of
    from ..session.rehearsal import without_weights

    if loaded.task.medium is not None:
        inputs = typical_inputs(loaded, None, [files] if files else None)
        return compile_alike(loaded, inputs, plan, progress=progress, **options)[0]
    compiled: list[Any] = []

    def write(folder: Path, plan: Any) -> Path:
        calibrated = {"texts": texts, "progress": progress, **options}
        compiled.append(compile_lengths(loaded, [length], plan, **calibrated)[length])
        return save(compiled[0], folder, loaded, parts=("helper",))

    named = {"lengths": [length], "texts": 1, "calibration": texts, **options, **marks_of(adapter)}  # as of `run`
    try:
        (program,) = load_programs(cached(model, cache_folder(), write, plan, named, read=load_programs)).values()
        return without_weights(program, plan)
    except ArtifactError:
        if not compiled:
            raise
        return compiled[0]  # a cache that cannot be written is no reason to answer nothing


def _as_compiled(model: str, length: int | None) -> tuple[Any, int, str, Any]:
    """(its client's part, the length, its plan's name, what is priced) of a compiled folder. Without a length: LENGTH
    if it is compiled for that, else the longest.

    Errors: BlindformerError.
    """
    from ...models.artifacts import load_client, load_programs
    from ...models.artifacts.layout import only
    from ..session.rehearsal import without_weights

    folder = Path(model).expanduser()
    part, programs = load_client(folder, computing=False), load_programs(folder)
    if part.in_passes:
        raise BlindformerError(f"{model}: answers token by token; give --tokens, as it is compiled for")
    length = length or (LENGTH if LENGTH in programs else max(programs))
    program = only(programs, length, folder)
    return part, length, str(part.about["plan"]), without_weights(program, DEFAULT_PLAN)


def _conversation(
    phases: Phases, model: str, plan: str | None, settings: dict[str, Any], prompt: int, network: Any
) -> tuple[str, str, Any]:
    """The names of the model and of its plan, and the price. The model is compiled with `settings` if it is not yet."""
    from ...models.artifacts import load_server
    from ...models.generation.folder import found_or_compiled
    from ...models.generation.rows import room
    from ..reports.estimate import estimate_conversation

    cache = cache_folder()
    chosen = None if plan is None else read_plan(plan)
    phases.end("load")
    with compiling(phases) as progress:
        part = load_server(found_or_compiled(model, cache, plan=chosen, progress=progress, **settings))
    compiled = part.for_length()
    if (slots := room(compiled.program)) != settings["slots"]:
        why = f"{model} is compiled for {slots}; give that number, or the model's own folder"
        raise BlindformerError(f"--tokens {settings['slots']}: {why}")
    phases.begin("rehearse", len(compiled.program.parts))
    note = partial(phases.note, "rehearse")
    priced = estimate_conversation(compiled.program, network, prompt=prompt, weights=compiled.weights, stage=note)
    phases.end("rehearse")
    return compiled.program.model, part.plan.name, priced


def _show_conversation(model: str, plan: str, protocol: str, price: Any) -> None:
    out = console()
    out.print(
        f"[bold]{model}[/]   conversations of {price.slots} tokens   plan {plan}   protocol {protocol}   "
        f"network {price.network}\n"
    )
    rows = [
        (one.tokens, one.behind, one.rounds, mb(one.online_bytes), mb(one.offline_bytes), f"{one.online_s:.2f}",
         f"{one.offline_s:.2f}")
        for one in price.passes
    ]  # fmt: skip
    headings = ("tokens of a pass", "behind, at most", "rounds", "online MB", "offline MB", "online s", "offline s")
    out.print(table(*headings, right=range(len(headings)), rows=rows))
    out.print()
    for one in price.answer:
        out.print(
            f"a token behind at most {one.behind} others   at most {one.seconds:.2f} s, at least "
            f"{one.tokens_per_minute:.1f} tokens a minute"
        )
    read = price.prompt
    out.print(
        f"a prompt of {read.tokens} tokens   at most {read.seconds:.2f} s: {read.rounds} rounds, "
        f"{read.online_bytes / MB:.1f} MB online, {read.offline_bytes / MB:.1f} MB offline\n"
        f"network  {_in_words(price)}\n"
        f"set-up   about {price.setup_s:.2f} s: {price.setup_bytes / MB:.1f} MB of masked weights, once\n"
        "(a token takes less if the parties have cores to prepare it during the pass before)"
    )


def _in_words(network: Any) -> str:
    rtt, bandwidth = network.rtt_s * 1e3, network.bandwidth / 1e6
    return f"{network.network}: {rtt:g} ms there and back, {bandwidth:g} Mbit/s each way"


def _size(loaded: Any, length: int) -> str:
    medium = loaded.task.medium
    return f"length {length}" if medium is None else medium.one


def _show_audited(show: Callable[[], None], price: Any, audits: float) -> None:
    show()
    runs = 1 / (1 - audits)
    console().print(
        f"audits   {audits:g} of all runs, so {runs:.2f} runs an answer on average: "
        f"{runs * price.online_s:.2f} s online, {runs * price.offline_s:.2f} s offline, "
        f"{runs * (price.online_bytes + price.offline_bytes) / MB:.1f} MB"
    )


def _show_many(loaded: Any, length: int, plan: str, protocol: str, price: Any) -> None:
    out, size = console(), len(price.sent)
    out.print(
        f"[bold]{loaded.name}[/]   {_size(loaded, length)}   plan {plan}   protocol {protocol}   {size} parties\n"
    )
    rows = [(party, mb(price.sent[party]), mb(price.received[party])) for party in price.sent]
    out.print(table("party", "sends MB", "receives MB", right=(1, 2), rows=rows))
    out.print(
        f"\nonline   {price.online_bytes / MB:.1f} MB in all, {price.rounds} rounds whatever the number of parties\n"
        f"offline  {price.offline_bytes / MB:.1f} MB from the dealer to the first party\n"
        f"set-up   {price.setup_bytes / MB:.1f} MB of masked weights, once, from the first party to the others\n"
        "seconds are not estimated for this protocol"
    )


def _passed_on(price: Any) -> str:
    size = price.passed_on_bytes
    return f", {size / MB:.1f} MB of it on to the client" if size else ""


def _show_pair(show: Callable[[], None], pair: Any) -> None:
    show()
    rows = [(kind, mb(one.to_client), mb(one.to_server)) for kind, one in sorted(pair.query.traffic.items())]
    query, setup = ((one.to_client + one.to_server) / MB for one in (pair.query.total, pair.setup))
    out = console()
    out.print("\nwithout a dealer, in the place of offline and set-up above, server and client send each other")
    out.print(table("", "MB to client", "MB to server", right=(1, 2), rows=rows))
    out.print(
        f"offline  {query:.1f} MB in {pair.query.rounds} rounds, {pair.network_s:.2f} s of network; without computing\n"
        f"set-up   {setup:.1f} MB a session: the encrypted weights, keys and base transfers"
    )


def _show(by: str, loaded: Any, length: int, plan: str, protocol: str, price: Any) -> None:
    out, size = console(), _size(loaded, length)
    out.print(f"[bold]{loaded.name}[/]   {size}   plan {plan}   protocol {protocol}   network {price.network}\n")
    out.print(price_table(price, by, ("online MB", "offline MB", "million MACs", "rounds")))
    spent = {role: sum(s for name, s in price.compute_s.items() if name.startswith(role)) for role in ROLES}
    busy = ", ".join(f"{role} {seconds:.2f} s" for role, seconds in spent.items())
    out.print(
        f"\n({by}s share rounds, so their rounds add up to more than the total)\n"
        f"network  {_in_words(price)}\n"
        f"online   about {price.online_s:.2f} s: {price.up / MB:.1f} MB up, {price.down / MB:.1f} MB down, "
        f"{price.rounds} rounds\n"
        f"offline  about {price.offline_s:.2f} s: {price.dealt_bytes / MB:.1f} MB from the dealer{_passed_on(price)}\n"
        f"set-up   about {price.setup_s:.2f} s: {price.setup_bytes / MB:.1f} MB of masked weights, once\n"
        f"compute  {busy}, as measured on this machine; a thread and a core for each"
    )
