"""`blindformer run MODEL TEXT...` and `blindformer demo`: all parties on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ..config import load_settings
from ..registry import DEFAULT, PRIVATE_HEAD, deployed, find, protocol_for
from . import options
from .items import InputOptions, check_length, complain, raise_if_all
from .output import MB, answer_table, asked, console, cuts, print_result, row_of, similarities, table
from .progress import Phases
from .receipt import ReceiptOptions
from .steps import (
    OwnAdapter,
    Weights,
    cache_folder,
    check_there,
    compiler,
    compiling,
    load_model,
    loading,
    read_texts,
    refuse,
    refuse_for_public,
    warn_untrained,
    weights_of,
)
from .written import Seconds, show_written, written

if TYPE_CHECKING:  # importing it takes seconds
    from ..client.result import Result


TIMEOUT = 120.0  # seconds of silence, unless a file says another number
ANSWERS = "answers"  # as an input of --owner


@options.grouped
def run(
    *,
    model: options.Model,
    text: Annotated[
        list[str] | None,
        Argument(help="Texts, or files of images or audio; `-` or nothing: standard input, a text a line."),
    ] = None,
    inputs: InputOptions,
    plan: options.OwnPlan = None,
    protocol: options.Runs = DEFAULT,
    parties: Annotated[options.Parties, options.AMONG] = 2,
    owner: Annotated[
        list[str] | None,
        Option(
            metavar="INPUT=NAME",
            help="Owner of an input, or with answers=NAME who gets the answers (default: bob). May be repeated.",
        ),
        options.AMONG,
    ] = None,
    length: Annotated[
        str,
        Option(help="Padded length: auto: 16, 32, 64 ...; exact: the text's own, which it reveals; or a number."),
    ] = "auto",
    truncate: options.Truncate = "off",
    seconds: Seconds = None,
    calibrate: options.Calibrate = None,
    embedding: options.Embedding = "client",
    adapter: OwnAdapter = None,
    weights: Weights = None,
    vouched: ReceiptOptions,
    config: options.OwnConfig = None,
    threads: options.Threads = 1,
    device: options.Device = None,
    form: options.Form = "text",
) -> None:
    """Run texts, images or sounds privately: server, dealer and client as three processes of this machine, over TLS.

    With protocol crypten: a dealer and as many parties as you say: alice, bob, carol ... The first owns the model, the
    second the texts.
    """
    inputs.check(text or [])
    check_length(length, "auto", "exact")
    check_there("--calibrate", calibrate)
    check_there("--adapter", adapter)
    if truncate == "windows":
        raise BlindformerError(
            "--truncate windows: is of `query` and of pipelines; run shows one query: cut the text at one end"
        )
    owners = weights_of(weights)
    protocol, head = protocol_for(protocol, owners, embedding, heads=True), owners == PRIVATE_HEAD
    refuse_for_public(protocol, {"--calibrate": calibrate}, head)
    if head:
        refuse(
            {"--adapter": adapter}, "is put on a public model, and this one has a private head; leave one of them out"
        )
    prices = vouched.reckon(protocol, config)
    settings = load_settings(config, deployed())
    client, timeout = settings.client, settings.session.timeout if config else TIMEOUT
    local = _local(protocol, parties, owner or [])
    local.check_device(device := device or "cpu")
    with loading(threads, parties=not local.entry.reference) as phases:
        from ...models.data.dataset import columns_of
        from ...models.delegated.building import found_or_delegated
        from ...models.delegated.folder import load_part
        from ...models.delegated.memory import read_memory
        from ...models.loading.answers import read_answer
        from ...models.loading.huggingface import InputError
        from ...models.loading.media import word_of
        from ...models.loading.truncation import truncation_of
        from ..client.compare import compare, encode_each
        from ..client.result import Result

        loaded, chosen = load_model(phases, model, plan, adapter)
        trained = plan is None and not isinstance(chosen, str) and not local.entry.prepare
        items = inputs.read(loaded.kind, text or [], columns_of(loaded.folder))
        fitting = {index: item.value for index, item in enumerate(items) if item.error is None}
        cut = truncation_of(truncate)
        if cut != "off" and loaded.task.medium is not None:
            raise InputError(
                f"--truncate: is of texts, and {loaded.name} takes {loaded.task.medium.word}s; leave it out"
            )
        if loaded.task.writes:
            refuse({"--owner": owner}, "the second party has the texts and gets the answers here; leave it out")
            phases.end("load")
            how: dict[str, Any] = {"length": length, "truncate": cut, "timeout": timeout, "threads": threads}
            how |= {"embedding": embedding, "weights": owners, "plan": chosen}
            how |= {"calibrate": calibrate, "encoding": inputs.encoding, "adapter": adapter, "seconds": seconds}
            how |= {"prices": prices, "device": device, "pad": client.pad, "client_memory": client.memory}
            shown = written(phases, local, model, loaded, items, **how)
            try:
                show_written(form, _setting({**shown.result, "parties": parties}), items, shown)
            finally:
                vouched.keep(shown.receipt)
            return
        refuse({"--seconds": seconds}, f"is of models that write down speech, and {loaded.name} does not")
        size, encoded, refused = encode_each(loaded, fitting, length, cut)
        errors: dict[int, Any] = {index: item.error for index, item in enumerate(items) if item.error is not None}
        errors |= refused
        raise_if_all(items, errors)
        phases.end("load")
        compile_as = {"embedding": embedding, "weights": owners, "adapter": adapter}
        with compiling(phases):
            memory = read_memory(client.memory)
            if head:
                own = [str(calibrate)] if calibrate and loaded.task.medium else read_texts(calibrate, inputs.encoding)
                how = {"head": True, "lengths": [size] if size else None, "calibration": own, "loaded": loaded}
                folder = found_or_delegated(model, cache_folder(), plan=plan, progress=phases.of("compile"), **how)
                compiled = load_part(folder, memory=memory)
            else:
                compiled = local.prepared(loaded, plan, memory=memory)
            if compiled is None:
                make = compiler(phases, model, loaded, size, chosen, calibrate, inputs.encoding, **compile_as)
                compiled = local.compile_for(len(encoded), make)
                warn_untrained(compiled.plan, loaded.plan())
            else:
                compiled.pad = client.pad
        comparison = compare(
            loaded,
            compiled,
            list(encoded.values()),
            protocol=protocol,
            threads=threads,
            timeout=timeout,
            progress=phases.step,
            parties=local.parties,
            trained=trained,
            prices=prices,
            device=device,
        )
    task, order = loaded.task, list(encoded)
    word = word_of(task.pipeline)
    errors |= {order[place]: error for place, error in comparison.errors.items()}
    answers = {index: Result(items[index].value, error=error) for index, error in errors.items()}
    for index, private in zip(order, comparison.private, strict=True):
        if index not in errors:
            item, of_texts = items[index].value, loaded.task.medium is None
            value = read_answer(task, private, encoded[index], item=item if of_texts else None, truncate=cut)
            tokens = loaded.tokens(item) if of_texts else 0
            left_out = max(tokens - size, 0)
            answers[index] = Result(item, value, length=size, tokens=tokens - left_out, truncated=left_out)
    results = [
        {
            **item.place,
            **asked(task.pipeline, item.value),
            **({"truncated": answers[index].truncated} if cut != "off" else {}),
            **row_of(task.pipeline, answers[index]),
        }
        for index, item in enumerate(items)
    ]
    for index in sorted(errors):
        complain(items, index, errors[index])
    summary = comparison.summary(model, size, normalised=loaded.kind == "sentence")
    if local.entry.parties is None:
        summary |= {"parties": parties, "recipient": local.parties.names[local.parties.recipient_rank]}
    in_order = [answers[index] for index in range(len(items))]
    if pairs := similarities(task.pipeline, in_order):
        summary["similarities"] = pairs
    costs = local.costs(comparison.reports, "a text" if task.medium is None else task.medium.one)
    result = {**summary, "results": results, "learned": comparison.reports[-1].learned}
    print_result(form, result, lambda: _show(loaded.name, word, task.pipeline, in_order, summary, costs))
    vouched.keep(comparison.receipt)
    if errors:
        raise Exit(1)


def _local(protocol: str, parties: int, owners: list[str]) -> Any:
    """The protocol, with who is who among N parties. Refuses what cannot be before anything slow happens.

    Errors: PartiesError, CryptenError.
    """
    from ..client.local import find_local
    from ..session.parties import Parties, PartiesError

    local = find_local(protocol, parties)
    if local.entry.parties is None:
        pairs = [item.rpartition("=") for item in owners]
        for name, equals, _ in pairs:
            if not name or not equals:
                raise PartiesError("--owner: say INPUT=NAME, such as attention_mask=carol")
        named = {name: who for name, _, who in pairs}
        recipient = named.pop(ANSWERS, "")
        who = Parties(local.parties.names, named, recipient)
        return replace(local, parties=who)
    return local


def _setting(summary: dict[str, Any]) -> str:
    (entry, *heads), plan = map(find, summary["protocol"].split("+")), f"plan {summary['plan']}"
    if entry.insecure:
        return f"INSECURE, protocol {entry.name}: {entry.insecure}   {plan}"
    who = f"protocol {entry.name}: {entry.who.format(**summary)}"
    who += "".join(f"; its head in protocol {head.name}: {head.who}" for head in heads)
    if not summary["plan"]:  # the model's own functions
        return f"{who}   TLS 1.3"
    return f"{who}   {plan}" if entry.reference else f"{who}   TLS 1.3   {plan}"


def _show(name: str, word: str, task: str, answers: Sequence[Result], summary: dict[str, Any], costs: str) -> None:
    out = console()
    out.print(_setting(summary))
    if "recipient" in summary:
        out.print(f"the answers go to {summary['recipient']}")
    unit = "tokens" if word == "text" else "samples"
    padded = f", padded to {summary['length']} {unit}" if summary["length"] else ""
    out.print(f"model {name}   {word}s {len(answers)}{padded}\n")
    out.print(answer_table(task, answers, summary.get("similarities", []), cut=cuts(answers)))
    out.print(
        f"\n{costs}   in the clear {summary['plaintext_s'] * 1000:.0f} ms\n"
        f"largest error against float32 {summary['max_abs_error']:.4f}, cosine at least {summary['cosine_min']:.6f}"
    )


SENTENCES = (
    "I forgot my login.",
    "How do I reset my password?",
    "My parcel has not arrived yet.",
    "The delivery is five days late.",
    "Can I pay with a credit card?",
    "Which payment methods do you accept?",
)
LENGTH = 32  # tokens that every sentence is padded to
PAIRS_SHOWN = 6  # the three that belong together, and as many that do not


def demo(form: options.Form = "text") -> None:
    """Private sentence similarity: three real processes over TLS on this machine, and the same in the clear."""
    with loading(1, parties=True) as phases:
        from ..client.compare import compare

        loaded, chosen = load_model(phases, "minilm", "faithful")
        phases.end("load")
        with compiling(phases):
            compiled = compiler(phases, "minilm", loaded, LENGTH, chosen, None)(1)
        warn_untrained(compiled.plan)
        inputs = [loaded.encode(text, LENGTH) for text in SENTENCES]
        comparison = compare(loaded, compiled, inputs, timeout=TIMEOUT, progress=phases.step)
    pairs = _pairs(comparison)
    summary = comparison.summary("minilm", LENGTH, normalised=True)
    last = comparison.reports[-1]
    result = {
        **summary,
        "pairs": pairs,
        "sentences": list(SENTENCES),
        **{name: getattr(last, name) for name in ("learned", "setup_s", "setup_bytes")},
        "compile_s": phases.seconds["compile"],
    }
    print_result(form, result, lambda: _show_demo(loaded, comparison, phases, pairs, summary))


def _pairs(comparison: Any) -> list[dict[str, Any]]:
    """Every pair of sentences with its cosine, private and in the clear, the most alike first."""
    from torch import cosine_similarity

    def cosine(outputs: list[dict[str, Any]], i: int, j: int) -> float:
        return float(cosine_similarity(outputs[i]["sentence_embedding"][0], outputs[j]["sentence_embedding"][0], 0))

    rows = [
        {
            "a": SENTENCES[i],
            "b": SENTENCES[j],
            "private": cosine(comparison.private, i, j),
            "clear": cosine(comparison.clear, i, j),
        }
        for i, j in combinations(range(len(SENTENCES)), 2)
    ]
    return sorted(rows, key=lambda row: -row["clear"])


def _show_demo(
    loaded: Any, comparison: Any, phases: Phases, pairs: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    out, report = console(), comparison.reports[-1]
    count = len(comparison.reports)
    out.print(
        f"[bold]Blindformer[/]   protocol {report.protocol}: two parties and an offline dealer, semi-honest, 128 bits"
        f"   TLS 1.3   plan {report.plan}"
    )
    out.print(
        f"model  {loaded.name}, {loaded.model.config.num_hidden_layers} layers, {loaded.parameters / 1e6:.1f} M "
        "parameters   known to: server"
    )
    out.print(f"text   {count} sentences, padded to {summary['length']} tokens   known to: client")
    out.print(
        f"compile {phases.seconds['compile']:.1f} s   set-up {report.setup_s:.1f} s, {report.setup_bytes / MB:.0f} MB, "
        f"once   then a sentence: offline (dealer) {summary['offline_s']:.2f} s   private inference "
        f"{summary['online_s']:.2f} s\n"
    )
    ends = [*pairs[: PAIRS_SHOWN // 2], *pairs[-PAIRS_SHOWN // 2 :]]
    rows = [('"{a}"  ~  "{b}"'.format(**row), f"{row['private']:.3f}", f"{row['clear']:.3f}") for row in ends]
    out.print(table("pair", "private", "in the clear", right=(1, 2), rows=rows))
    ratio = summary["online_s"] / summary["plaintext_s"]
    out.print(
        f"\nlargest error {summary['max_abs_error']:.4f} of a normalised element, cosine at least "
        f"{summary['cosine_min']:.6f}\n"
        f"a sentence: offline {summary['offline_s']:.2f} s, {summary['offline_bytes'] / MB:.1f} MB   online "
        f"{summary['online_s']:.2f} s, {summary['online_bytes'] / MB:.1f} MB, {summary['rounds']} rounds   "
        f"{ratio:.1f} x the {summary['plaintext_s'] * 1000:.0f} ms in the clear\n"
    )
    out.print("[bold]who learned what[/]")
    seen = {**report.learned, "released": f"to the client: {report.learned['released to the client']}"}
    saw = table("", "", rows=[(name, seen[name]) for name in ("server", "dealer", "client", "released", "public")])
    saw.show_header = False
    out.print(saw)
