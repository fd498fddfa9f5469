"""`blindformer serve --party NAME`: one of N parties of protocol crypten, or their dealer, for one session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from typer import Exit

from ...errors import BlindformerError
from ...versions import versions
from ..config import load_settings, parse_address
from ..registry import of_parties
from .items import InputOptions, raise_if_all
from .output import MB, answer_table, banner, console, good_until, note, print_json, print_result, row_of, similarities
from .progress import Phases
from .steps import loading


def take_part(
    name: str,
    words: list[str],
    files: list[Path] | None,
    config: Path | None,
    certs: Path | None,
    listen: str | None,
    device: str | None,
    form: str,
    local: str | None,
) -> None:
    """As party `name` of the file, or as the dealer, in one session."""
    from ..session.parties import DEALER, PartiesError

    if config is None:
        raise PartiesError(f"--party {name}: the parties are named in a file; add --config FILE")
    of_dealer = {"dealer.listen": listen, "dealer.device": device} if name == DEALER else {}
    settings = load_settings(config, of_parties(), **{"certificates.folder": certs, **of_dealer})
    section = settings.crypten.parties.get(name)
    with loading(section.threads if section else 1, notes=1) as phases:
        if local is not None:
            from ..service.local_options import LocalOptions
            from ..service.party_runner import run_for_launcher

            run_for_launcher(settings, name, LocalOptions.read(local, keep=True))
            return
        if name == DEALER:
            _deal(settings, phases, form)
            return
        from ..service.party_runner import PartyRunner

        try:
            at = None if listen is None else parse_address(listen)
        except ValueError as error:
            raise PartiesError(f"--listen {listen}: {error}") from None
        runner = PartyRunner(settings, name, listen=at, device=device)
        if runner.values or words or files:
            runner.give(_items(runner, words, InputOptions(files)))
        phases.end("load")
        listener = runner.listen()
        helpers = "an offline dealer, which sees no input, no weight and no opened value"
        _banner(runner, listener, helpers, runner.model.program.hash())
        answered: list[Any] = []
        broken: BlindformerError | None = None
        report = lambda now, answer: answered.append(runner.read(now, answer))  # noqa: E731
        try:
            runner.take_part(listener, report, progress=phases.step, refused=_refused)
        except BlindformerError as error:  # what was answered before is good
            broken = error
    if runner.unasked and broken is None:
        note(f"{runner.unasked} inputs were not asked for")
    failed = [item for item in answered if item.error is not None]
    for item in failed:
        note(str(item.error))
    if answered or broken is None:
        (_print_json if form == "json" else _show)(runner, answered)
    if broken is not None:
        raise broken
    if failed:
        raise Exit(1)


def _items(runner: Any, words: list[str], inputs: InputOptions) -> list[str]:
    """This party's inputs, one for each query. Errors: BlindformerError."""
    named = [*words, *map(str, inputs.file or [])]
    if named and all(item.endswith(".safetensors") for item in named):
        return named
    kind, trained = ("", None) if runner.client is None else (runner.client.kind, runner.client.about.get("columns"))
    items = inputs.read(kind, words, trained)
    for index, item in enumerate(items):  # one query for each: all parties must give equally many
        raise_if_all(items[index : index + 1], {0: item.error} if item.error else {})
    return [item.value for item in items]


def _deal(settings: Any, phases: Phases, form: str) -> None:
    from ..service.party_runner import DealerRunner
    from ..session.parties import DEALER

    runner = DealerRunner(settings)
    phases.end("load")
    listener = runner.listen()
    helpers = "nobody: this is the dealer, which sees no input, no weight and no opened value"
    _banner(runner, listener, helpers)
    runner.deal(listener, _refused)
    result = {"party": DEALER, "protocol": runner.settings.session.protocol, "parties": list(runner.parties.names)}
    print_result(form, result, "the session is over; the dealer's seeds and keys are forgotten")


def _banner(runner: Any, listener: Any, helpers: str, program: str = "") -> None:
    from ...protocols.crypten import PROTOCOL
    from ..service.service import COLLUDING, SECURITY_BITS

    lines = [f"parties  {who_is_who(runner.parties)}", *([f"program  {program[:16]}"] if program else [])]
    at = "dials all others" if listener is None else "at  {}:{}".format(*listener.address)
    lines.append(f"{at}   {good_until(runner.identity.expires)}")
    title = f"{runner.name}[/]   protocol {PROTOCOL.name}   {SECURITY_BITS} bits"
    banner(title, PROTOCOL.security, helpers, f"the dealer and any party {COLLUDING}", lines)


def who_is_who(parties: Any) -> str:
    """One line: every party, with what it has and gets."""
    named: dict[str, list[str]] = {name: [] for name in parties.names}
    named[parties.names[0]].append("the model")
    for item, name in parties.owners.items():
        named[name].append(item)
    if parties.data or not parties.owners:
        named[parties.names[parties.asker] if not parties.data else parties.data].append("the data")
    named[parties.names[parties.recipient_rank]].append("the answers")
    return "   ".join(name + (f" ({', '.join(has)})" if has else "") for name, has in named.items())


def _refused(error: Any) -> None:
    note(f"turned away: {error}")


def _print_json(runner: Any, answered: list[Any]) -> None:
    rows = []
    for item in answered:
        row = {} if item.item is None else {"input": item.item}
        if item.error is not None or runner.gets_answers:
            row |= row_of(runner.task, item)
        spent = item.timings
        row |= {"offline_s": spent.offline_s, "online_s": spent.online_s, "offline_bytes": spent.offline_bytes}
        row |= {"online_sent_bytes": spent.online.sent, "online_received_bytes": spent.online.received}
        rows.append(row | {"rounds": spent.rounds})
    print_json(
        {
            "party": runner.name,
            "protocol": runner.settings.session.protocol,
            "parties": list(runner.parties.names),
            "recipient": runner.parties.names[runner.parties.recipient_rank],
            "program": runner.model.program.hash(),
            "setup_bytes": runner.setup_bytes,
            "queries": len(answered),
            "results": rows,
            "versions": versions(),
        }
    )


def _show(runner: Any, answered: list[Any]) -> None:
    out, count = console(), len(answered)
    recipient = runner.parties.names[runner.parties.recipient_rank]
    if runner.gets_answers:
        rows = [replace(item, item=item.item or f"query {number}") for number, item in enumerate(answered, 1)]
        out.print(answer_table(runner.task, rows, similarities(runner.task, rows)))
    else:
        out.print(f"took part in {count} {'query' if count == 1 else 'queries'}; {recipient} has the answers")
    if answered:
        spent = [item.timings for item in answered]
        out.print(
            f"\n{'on average: ' if count > 1 else ''}"
            f"offline {sum(t.offline_s for t in spent) / count:.2f} s   online "
            f"{sum(t.online_s for t in spent) / count:.2f} s, {spent[0].online.sent / MB:.1f} MB sent, "
            f"{spent[0].online.received / MB:.1f} MB received, {spent[0].rounds} rounds"
        )
