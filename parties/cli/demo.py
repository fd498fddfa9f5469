"""`blindformer demo`: six sentences through a real model that never sees them, beside the answer in the clear."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any

from typer import Option

from ...models.loading.truncation import IN_COMMANDS
from . import options
from .output import MB, console, table, tell
from .progress import Phases
from .steps import compiler, compiling, load_model, loading, warn_untrained

SENTENCES = (
    "I forgot my login.",
    "How do I reset my password?",
    "My parcel has not arrived yet.",
    "The delivery is five days late.",
    "Can I pay with a credit card?",
    "Which payment methods do you accept?",
)
PAIRS_SHOWN = 6  # the three that belong together, and as many that do not


def demo(
    length: Annotated[int, Option(min=8, help="Tokens that every sentence is padded to.")] = 32,
    plan: options.Plan = "faithful",
    threads: options.Threads = 1,
    timeout: options.Timeout = 120,
    form: options.Form = "text",
) -> None:
    """Private sentence similarity: three real processes over TLS on this machine, and the same in the clear."""
    with loading(threads, parties=True) as phases:
        from ..client.compare import compare

        loaded, chosen = load_model(phases, "minilm", plan)
        loaded.length_for(list(SENTENCES), length, ways=replace(IN_COMMANDS, cut=""))
        phases.end("load")
        with compiling(phases):
            compiled = compiler(phases, "minilm", loaded, length, chosen, None)(1)
        warn_untrained(compiled.plan)
        inputs = [loaded.encode(text, length) for text in SENTENCES]
        found = compare(loaded, compiled, inputs, threads=threads, timeout=timeout, progress=phases.step)
    pairs = _pairs(found)
    summary = found.summary("minilm", length, normalised=True)
    last = found.reports[-1]
    told = {
        **summary,
        "pairs": [{"a": a, "b": b, "private": p, "clear": c} for a, b, p, c in pairs],
        "sentences": list(SENTENCES),
        **{name: getattr(last, name) for name in ("learned", "setup_s", "setup_bytes")},
        "compile_s": phases.seconds["compile"],
    }
    tell(form, told, lambda: _show(loaded, found, phases, pairs, summary))


def _pairs(found: Any) -> list[tuple[str, str, float, float]]:
    """Every pair of sentences with its cosine, private and in the clear, the most alike first."""
    import torch

    private = torch.stack([o["sentence_embedding"][0] for o in found.private])
    clear = torch.stack([o["sentence_embedding"][0] for o in found.clear])
    rows = [
        (
            SENTENCES[a],
            SENTENCES[b],
            float(torch.cosine_similarity(private[a], private[b], 0)),
            float(torch.cosine_similarity(clear[a], clear[b], 0)),
        )
        for a, b in combinations(range(len(SENTENCES)), 2)
    ]
    return sorted(rows, key=lambda row: -row[3])


def _show(loaded: Any, found: Any, phases: Phases, pairs: list, summary: dict[str, Any]) -> None:
    out, report = console(), found.reports[-1]
    count = len(found.reports)
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
    rows = [(f'"{a}"  ~  "{b}"', f"{private:.3f}", f"{clear:.3f}") for a, b, private, clear in ends]
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
    learned = report.learned
    saw = table("party", "saw")
    saw.show_header = False
    saw.add_row("server", learned["server"])
    saw.add_row("dealer", learned["dealer"])
    saw.add_row("client", learned["client"])
    saw.add_row("released", f"to the client: {learned['released to the client']}")
    saw.add_row("public", learned["public"])
    out.print(saw)
