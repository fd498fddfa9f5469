"""`blindformer run MODEL TEXT...` and `blindformer demo`: all parties on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ...models.loading.truncation import IN_COMMANDS
from ...versions import versions
from ..config import load_settings
from ..launch import LOCAL
from ..registry import DEFAULT, PRIVATE_HEAD, deployed, find_talking, protocol_for
from . import options
from .items import InputItem, InputOptions, check_length, raise_if_all
from .output import MB, console, note_unfinished, print_result, similarities, table
from .progress import Phases
from .query import ask_items, row, setting_of, show_answers
from .steps import (
    OwnAdapter,
    ReceiptOptions,
    Weights,
    cache_folder,
    can_write,
    check_there,
    compiling,
    load_model,
    loading,
    read_texts,
    refuse,
    refuse_for_public,
    warn_untrained,
    weights_of,
)

SPARE = "blindformer-"
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
    dealer: options.NoDealer = None,
    parties: Annotated[options.Parties, options.AMONG] = 2,
    owner: Annotated[
        list[str] | None,
        Option(
            metavar="INPUT=NAME",
            help="Who owns INPUT (default: bob). May be repeated.",
        ),
        options.AMONG,
    ] = None,
    length: Annotated[
        str,
        Option(help="Padded length: auto, exact (reveals the text's own), or a number."),
    ] = "auto",
    truncate: options.Truncate = "off",
    seconds: options.Seconds = None,
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
    """Run a model privately on texts, images or audio; all parties are processes on this machine.

    With protocol crypten, the parties are alice, bob, carol ...: the first owns the model, the second the texts.
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
    prices = vouched.read_prices(protocol, config)
    settings = load_settings(config, deployed())
    options.check_no_dealer(dealer, protocol)
    local = _local(protocol, parties, owner or [])
    local.check_device(device := device or "cpu")
    asking: dict[str, Any] = {"timeout": settings.session.timeout if config else TIMEOUT, "threads": threads}
    asking |= {"device": device} if device != "cpu" else {}
    asking |= {"dealer": dealer} if dealer else {}
    if local.entry.as_it_is:
        asking |= {"adapter": adapter, "pad": settings.client.pad, "client_memory": settings.client.memory}
    with loading(threads, parties=not local.entry.reference) as phases, TemporaryDirectory(prefix=SPARE) as spare:
        from ...approximations import Plan
        from ...models.building import default_lengths
        from ...models.data.dataset import columns_of
        from ...models.delegated.building import found_or_delegated
        from ...models.loading.huggingface import InputError
        from ...models.loading.truncation import truncation_of
        from ..client.client import open_here
        from ..client.compare import compare, encode_each

        loaded, chosen = load_model(phases, model, plan, adapter)
        task, cut = loaded.task, truncation_of(truncate)
        items = inputs.read(loaded.kind, text or [], columns_of(loaded.folder))
        if cut != "off" and task.medium is not None:
            raise InputError(f"--truncate: is of texts, and {loaded.name} takes {task.medium.word}s; leave it out")
        if task.writes:
            refuse({"--owner": owner}, "the second party has the texts and gets the answers here; leave it out")
            refuse({"--dealer": dealer}, "of a model that writes correlations take a dealer; leave it out")
            find_talking(protocol)
        else:
            refuse({"--seconds": seconds}, f"is of models that write down speech, and {loaded.name} does not")
        size, encoded, refused = encode_each(loaded, _readable(loaded, items), length, cut)
        items = [replace(item, error=refused.get(index, item.error)) for index, item in enumerate(items)]
        raise_if_all(items, {index: item.error for index, item in enumerate(items) if item.error is not None})
        phases.end("load")
        calibration = _calibration(loaded, calibrate, inputs.encoding)
        with compiling(phases) as progress:
            how: dict[str, Any]
            if local.entry.as_it_is:
                how = {"seconds": seconds} if task.writes else {}
                how |= {"head": True, "lengths": [size] if size else None, "calibration": calibration} if head else {}
                how |= {"loaded": None if adapter else loaded, "progress": progress}  # an adapter is in no folder
                folder, functions = found_or_delegated(model, cache_folder(), plan=plan, **how), None
            else:
                how = {"weights": owners, "embedding": embedding, "calibration": calibration, "seconds": seconds}
                usual = length == "auto" and size <= max(default_lengths(loaded)) if task.writes else False
                how["lengths"] = None if task.medium is not None or usual else [size]
                how["texts"] = None if local.shares_queries and len(encoded) > 1 else 1
                folder = _compiled(model, loaded, chosen, adapter, Path(spare), size, progress, how)
                functions = Plan.load(folder / "server")
                warn_untrained(functions, loaded.plan())
        with open_here(local, folder, progress=phases.step, truncate=cut, **asking) as client:
            client.ways = IN_COMMANDS
            results, broken = ask_items(client, items)
            receipt = vouched.issue(client, prices) if broken is None else None
        good = [index for index in sorted(results) if results[index].error is None]
        errors = {index: result.error for index, result in results.items() if result.error is not None}
        if not good:
            raise_if_all(items, errors)
        summary: dict[str, Any] = {}
        if not task.writes:
            trained = functions if plan is None and not isinstance(chosen, str) else None
            of_good = [encoded[index] for index in good], [results[index] for index in good]
            comparison = compare(loaded, *of_good, trained, threads)
            summary = comparison.summary(model, size, normalised=loaded.kind == "sentence")
    reports = list({id(results[index].report): results[index].report for index in good}.values())
    last, in_order = reports[-1], [(item, results[index]) for index, item in enumerate(items)]
    result = {"model": model, "task": task.pipeline, "plan": last.plan, "protocol": last.protocol}
    result |= summary | {"learned": last.learned, "versions": versions()}
    result["results"] = [row(client, *one) for one in in_order]
    if pairs := similarities(task.pipeline, [answer for _, answer in in_order]):
        result["similarities"] = pairs
    setting = setting_of(client, last.protocol, last.plan)
    if local.entry.parties is None:
        recipient = local.parties.names[local.parties.recipient_rank]
        result |= {"parties": parties, "recipient": recipient}
        setting += f"\nthe answers go to {recipient}"
    costs = local.costs(reports, "a text" if task.medium is None else task.medium.one)
    if summary:
        costs += f"   in the clear {summary['plaintext_s'] * 1000:.0f} ms\nlargest error against float32 "
        costs += f"{summary['max_abs_error']:.4f}, cosine at least {summary['cosine_min']:.6f}"
    print_result(form, result, lambda: show_answers(client, setting, in_order, costs))
    note_unfinished([answer for _, answer in in_order])
    if broken is not None:
        raise broken
    vouched.keep(receipt)
    if errors:
        raise Exit(1)


def _readable(loaded: Any, items: Sequence[InputItem]) -> dict[int, Any]:
    """What is read of each item that can be, by number: of a model that is told what to do, that comes before."""
    from ...models.generation.seq2seq import prefixes

    readable = {index: item.value for index, item in enumerate(items) if item.error is None}
    task = loaded.task
    before = prefixes(loaded.model.config).get(task.pipeline, "") if task.writes and task.medium is None else ""
    return {index: before + item if before and isinstance(item, str) else item for index, item in readable.items()}


def _calibration(loaded: Any, given: Path | None, encoding: str | None) -> list[str] | None:
    """As `calibration` of compile. Errors: DataError."""
    return [str(given)] if given and loaded.task.medium is not None else read_texts(given, encoding)


def _compiled(
    model: str, loaded: Any, plan: Any, adapter: Path | None, spare: Path, size: int, progress: Any, how: dict[str, Any]
) -> Path:
    """The folder of a model that is compiled for this, or was before. What is calibrated on files is not kept, nor what
    a cache cannot take; it is in `spare`. `how`: options of `compile_folder` or `compile_seq2seq_folder`."""
    from ...models.building import compile_folder
    from ...models.cached import cached, marks_of
    from ...models.generation.folder import compile_seq2seq_folder

    task, seconds, texts = loaded.task, how.pop("seconds"), how.pop("texts")
    own = {"seconds": seconds} if task.writes else {"texts": texts}
    write = partial(compile_seq2seq_folder if task.writes else compile_folder, loaded, progress=progress, **how, **own)
    if task.medium is not None and (how["calibration"] or not task.writes):
        return write(spare / "model", plan=plan, **({} if task.writes else {"samples": size}))

    def make(folder: Path, plan: Any) -> Path:
        return write(folder if can_write(folder) else spare / "model", plan=plan)

    return cached(model, cache_folder(), make, plan, {**how, **own, **marks_of(adapter)}, progress)


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
    """Compare sentences privately, in three processes over TLS on this machine, and in the clear."""
    with loading(1, parties=True) as phases, TemporaryDirectory(prefix=SPARE) as spare:
        from ..client.client import Client
        from ..client.compare import compare

        loaded, plan = load_model(phases, "minilm", "faithful")
        phases.end("load")
        how = {"weights": None, "embedding": "client", "calibration": None, "seconds": None, "lengths": [LENGTH]}
        with compiling(phases) as progress:
            folder = _compiled("minilm", loaded, plan, None, Path(spare), LENGTH, progress, how | {"texts": 1})
        with Client(LOCAL, folder=folder, timeout=TIMEOUT, progress=phases.step) as client:
            results = client.query_many(SENTENCES)
        comparison = compare(loaded, [loaded.encode(text, LENGTH) for text in SENTENCES], results)
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
