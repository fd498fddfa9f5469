"""The pages' tables of measured figures, from the results that the benches have left in bench/results.

Each table names the commit that it was measured at. An entry of the changelog that ends with `(changes figures: NAME)`
makes bench/results/NAME stale until it is measured anew, or the changelog's list of what is missing admits it:
`- Old figures: NAME`. tests/test_figures.py holds the results to that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
STUDENTS = RESULTS.parents[1] / "models" / "students"
MODELS = {"minilm": "MiniLM-L6", "bert-base": "BERT-base", "smollm2": "SmolLM2, a token"}
MB = 1e6
LEVELS = {
    "x86-64-v4-vnni": "AVX-512 with VNNI",
    "x86-64-v4": "AVX-512",
    "x86-64-v3": "AVX2",
    "x86-64": "any x86-64",
    "torch": "no kernels (`torch`)",
}
CHANGELOG = RESULTS.parents[1] / "CHANGELOG.md"
CHANGES = re.compile(r"\(changes figures: ([\w-]+(?:, [\w-]+)*)\)")
OURS = "blindformer, beaver"
ALONE = "no-dealer.jsonl"
PEERS = ("peers-minilm-32.json", "peers-minilm-128.json")
OLD = re.compile(r"^- Old figures: ([\w-]+(?:, [\w-]+)*)", re.MULTILINE)


def results() -> str:
    """The table of bench/README.md of sessions with private weights, and whose figures they are."""
    lines = [
        "| model, length 128 | plan | in the clear | online | offline | online traffic | offline traffic | rounds "
        "| largest error beside the approximated model | memory of a party |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    reports = {(report["model"], report["plan"]): report for report in kept("latency-128.jsonl")}
    for (model, plan), report in reports.items():
        lines.append(
            f"| {MODELS[model]} | {plan} | {report['plaintext_s']:.3f} s | {report['online_s']:.2f} s "
            f"({report['online_over_plaintext']:.1f}x) | {report['offline_s']:.2f} s "
            f"| {report['online_bytes'] / MB:.0f} MB "
            f"| {report['offline_bytes'] / MB:.0f} MB | {report['rounds']} "
            f"| {report['max_abs_error_approximated']:.4f} | {report['peak_rss_mb']:.0f} MB |"
        )
    faithful = reports["minilm", "faithful"]
    lines += [
        "",
        f"MiniLM `faithful` beside float32: largest error of a token's vector {faithful['max_abs_error']:.4f}, cosine "
        f"at least {int(faithful['cosine_min'] * 1e5) / 1e5:.5f}. {_provenance(faithful, 'latency-128')}.",
    ]
    return "\n".join(lines) + "\n"


def costs() -> str:
    """The README's table, of models with their real weights: public ones, then private ones."""
    lines = ["| model, plan | weights | in the clear | online | traffic, online + offline |", "|---|---|---|---|---|"]
    open_ones = [report for report in kept("open-models.jsonl") if report["plan"] == "faithful"]
    for report in [row for row in [*open_ones, *kept("latency-128.jsonl")] if row["weights"] == "real"]:
        token = "_per_token" if "plaintext_s_per_token" in report else ""
        owner = "public" if report["protocol"] == "delegated" else "private"
        clear, online = (report[f"{name}_s{token}"] for name in ("plaintext", "online"))
        traffic = " + ".join(f"{report[f'{name}_bytes{token}'] / MB:.3g}" for name in ("online", "offline"))
        cells = [f"{MODELS[report['model']]}, {report['plan']}", owner, f"{clear:.3f} s"]
        cells += [f"{online:.2f} s ({online / clear:.1f}x)", f"{traffic} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def many() -> str:
    """The table of docs/comparison.md."""
    rows = _peers(128)["rows"]
    plain = next(row for row in rows if row["name"] == "crypten, plain")
    lines = [
        "| MiniLM-L6, faithful, 128 tokens | online, offline | traffic online, offline | rounds | largest error "
        "| CrypTen's time, traffic over it |",
        f"|{'---|' * 6}",
    ]
    for row in rows:
        far = row["max_abs_error"] > 1
        times = [f"{row[name]:.2f} s" for name in ("online_s", "offline_s") if row[name]]
        sent = [f"{row[name] / MB:.0f} MB" for name in ("online_bytes", "offline_bytes") if row[name]]
        cells = [f"{row['name']}, {row['parties']} parties", ", ".join(times), ", ".join(sent)]
        cells += [
            str(row["rounds"] or ""),
            "diverges" if far else f"{row['max_abs_error']:.3f}",
            ", ".join(_over(plain, row)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Traffic of all parties. {_provenance(_peers(128), 'peers-minilm-128')}, one thread a party."]
    return "\n".join(lines) + "\n"


def compared() -> str:
    """The line of docs/comparison.md."""
    ours, crypten, spu = (_peers(128)["rows"][place] for place in (0, 3, 4))
    online = [f"{row['online_s']:.2f} s" for row in (ours, crypten, spu)]
    whole = [f"{row['online_s'] + (row['offline_s'] or 0):.2f} s" for row in (ours, crypten, spu)]
    return (
        f"- Length 128, online: `beaver` {online[0]}, CrypTen {online[1]}, SPU's SEMI2K {online[2]}. With the offline "
        f"phase: {', '.join(whole)}.\n"
    )


def open_models() -> str:
    """The table of bench/README.md of public models."""
    lines = [
        "| | plan | in the clear | online | online, offline traffic | rounds | beside float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    reports = kept("open-models.jsonl")
    for report in reports:
        if "length" in report:
            what, clear, online = f"{MODELS[report['model']]}, {report['length']} tokens", "plaintext_s", "online_s"
            sent = [report[name] for name in ("online_bytes", "offline_bytes", "rounds")]
            near = f"cosine {int(report['cosine_min'] * 1e7) / 1e7}"
        else:
            what = f"{report['model']}, a token behind {report['cache']}"
            clear, online = "plaintext_s_per_token", "online_s_per_token"
            sent = [report[f"{name}_per_token"] for name in ("online_bytes", "offline_bytes", "rounds")]
            same = round(report["agree_top1"] * report["positions"])
            near = f"the same token at {same} of {report['positions']} places"
        lines.append(
            f"| {what} | {report['plan']} | {report[clear]:.3f} s | {report[online]:.3f} s "
            f"({report[online] / report[clear]:.1f}x) | {sent[0] / MB:.2f}, {sent[1] / MB:.2f} MB | {sent[2]:.0f} "
            f"| {near} |"
        )
    return (
        "\n".join([*lines, "", f"{_provenance(reports[0], 'open-models')}, loopback with TLS, every answer checked."])
        + "\n"
    )


def levels() -> str:
    """The table of bench/README.md of processors' levels."""
    reports = kept("levels.jsonl")
    by_level = {(r["model"], r["plan"], r["machine"]["level"]): r for r in reports}
    lines = [f"| | | {' | '.join(LEVELS.values())} |", f"|{'---|' * (2 + len(LEVELS))}"]
    for model, plan in dict.fromkeys((r["model"], r["plan"]) for r in reports):
        row = [by_level[model, plan, level] for level in LEVELS]
        clear = " | ".join(f"{r['plaintext_s']:.3f} s" for r in row)
        online = " | ".join(f"{r['online_s']:.2f} s ({r['online_over_plaintext']:.1f}x)" for r in row)
        offline = " | ".join(f"{r['offline_s']:.2f} s" for r in row)
        lines.append(f"| {MODELS[model]} {plan} | in the clear | {clear} |")
        lines += [f"|  | online | {online} |", f"|  | offline | {offline} |"]
    return "\n".join([*lines, "", f"{_provenance(reports[0], 'levels')}."]) + "\n"


def architectures() -> str:
    """The table of bench/README.md of what runs in private."""
    from blindformer.bench.architectures import page_table

    rows = kept("architectures.json")
    return f"{page_table(rows)}\n{_provenance(rows[0], 'architectures')}.\n"


def accuracy() -> str:
    """The table of docs/distillation.md."""
    columns = {"UCI, seed 0": "uci-0", "seed 1": "uci-1", "seed 2": "uci-2"}
    columns["Rotten Tomatoes, seed 0"] = "rotten_tomatoes-0"
    by_seed = [
        {(row["student"], row["name"], row["protocol"]): row for row in kept(f"{name}.json")[0]["rows"]}
        for name in columns.values()
    ]
    private = [row["distilled", "approximated", "beaver"] for row in by_seed]
    alike = [f"{100 * row['agreement']['clear']['value']:.1f} %" for row in private]
    rows = {
        "teacher (MiniLM, fine-tuned), float32": ("distilled", "teacher", "torch"),
        "`fast`, untouched": ("distilled", "approximated, untouched", "torch"),
        "`fast`, distilled, fixed point (`clear`)": ("distilled", "approximated", "clear"),
        "`fast`, 3 layers, fixed point (`clear`)": ("3 layers", "approximated", "clear"),
    }
    counts = [str(row["distilled", "teacher", "torch"]["count"]) for row in by_seed]
    cells = {"test texts": counts} | {
        what: [f"{100 * row[key]['accuracy']['value']:.1f} %" for row in by_seed] for what, key in rows.items()
    }
    cells[f"agrees with `clear`, of {private[0]['count']} texts in private sessions"] = alike
    head = [f"| 8-bit linears, whole test set | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    return "\n".join([*head, *(f"| {what} | {' | '.join(row)} |" for what, row in cells.items())]) + "\n"


def students() -> str:
    """The table of docs/distillation.md of packaged students, from what their training recorded."""
    lines = [
        "| student | `public_texts`: correlation | same nearest | `imdb`: correlation | same nearest |",
        "|---|---|---|---|---|",
    ]
    for name in ("minilm-fast", "minilm-fast-small", "minilm-fast-long"):
        likeness = json.loads((STUDENTS / name / "distillation.json").read_text(encoding="utf-8"))["likeness"]
        cells = [
            f"{row['spearman']:.2f} | {100 * row['same_nearest']:.0f} %"
            for row in map(likeness.get, ("public_texts", "imdb"))
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def wraps() -> str:
    """The table of docs/comparison.md of wrong truncations."""
    names = ("inferences", "elements", "wrong", "inferences_hit")
    sums: dict[str, list[int]] = {}
    for row in (row for report in kept("wraps-minilm-32.json") for row in report["rows"]):
        before = sums.get(row["name"], [0] * len(names))
        sums[row["name"]] = [total + row[name] for total, name in zip(before, names, strict=True)]
    head = (
        "| MiniLM-L6, faithful, length 32, two parties | inferences | truncated elements | wrong by more than a unit "
    )
    lines = [f"{head}| inferences with one |", f"|{'---|' * 5}"]
    lines += [f"| {name} | {' | '.join(f'{total:,}' for total in totals)} |" for name, totals in sums.items()]
    return "\n".join(lines) + "\n"


def no_dealer() -> str:
    """The table of docs/deploy.md, of what both parties do ahead of a query of MiniLM."""
    lines = [
        "| MiniLM, tokens | CPU seconds of both | seconds | traffic | of a session's first query "
        "| memory of client, server |",
        f"|{'---|' * 6}",
    ]
    for report in kept(ALONE):
        memory = report["peak_rss_mb_by_party"]
        cells = [f"{report['plan']}, {report['length']}", f"{report['cpu_s']:.0f}", f"{report['offline_s']:.0f}"]
        cells += [f"{report[f'{first}offline_bytes'] / MB:.0f} MB" for first in ("", "first_")]
        cells.append(", ".join(f"{memory[party] / 1e3:.1f} GB" for party in ("client", "server")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{_provenance(kept(ALONE)[0], 'no-dealer')}."]) + "\n"


def in_words() -> dict[str, Callable[[], str]]:
    """Figures in sentences, each by the name of its part."""
    encrypted = "he-uci-0-1-layer.json"
    return {
        "no-dealer-query": lambda: f"{kept(ALONE)[0]['offline_bytes'] / MB:.0f} MB",
        "no-dealer-first": lambda: f"{kept(ALONE)[0]['first_offline_bytes'] / MB:.0f} MB",
        "no-dealer-seconds": lambda: f"{kept(ALONE)[0]['offline_s']:.0f}",
        "public-factor": lambda: f"{kept('open-models.jsonl')[0]['online_over_plaintext']:.1f}",
        "private-factor": lambda: f"{kept('latency-128.jsonl')[2]['online_over_plaintext']:.0f}",
        "encrypted-accuracy": lambda: f"{100 * kept(encrypted)[0]['accuracy']['clear']['value']:.0f} %",
        "encrypted-seconds": lambda: f"{kept(encrypted)[0]['ckks']['cpu_s'] / kept(encrypted)[0]['rows']:.1f}",
        "federated-loss": lambda: f"{kept('federated-digits.json')[0]['rows'][1]['below']:.1f}",
    }


def stale(changelog: str, before: Mapping[str, list[str]]) -> set[str]:
    """Results that more entries call changed now than at a commit of theirs. `before`: its changelog, by result."""
    return {
        name for name, texts in before.items() for text in texts if _changes(changelog, name) > _changes(text, name)
    }


def named(changelog: str) -> set[str]:
    """Results that entries call changed or old."""
    return {name for names in CHANGES.findall(changelog) for name in names.split(", ")} | admitted(changelog)


def admitted(changelog: str) -> set[str]:
    """Results that the changelog says are older than the code."""
    return {name for names in OLD.findall(changelog) for name in names.split(", ")}


def exact() -> Iterator[tuple[str, tuple[str, str, int, str], tuple[int, int, int]]]:
    """Of results of sessions: name; model, plan, length and whose weights; bytes online and offline, and rounds."""
    for file in ("costs.json", "latency-128.jsonl", "levels.jsonl", "open-models.jsonl", *PEERS):
        for report in kept(file):
            for row in [report | {"weights_are": "private"} | row for row in report.get("rows", [report])]:
                if "length" in row and row.get("layers", 6) == 6 and row.get("name", OURS) == OURS:
                    kind = (row["model"], row["plan"], row["length"], row["weights_are"])
                    yield file.partition(".")[0], kind, (row["online_bytes"], row["offline_bytes"], row["rounds"])


def kept(name: str) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def _peers(length: int) -> dict[str, Any]:
    return kept(f"peers-minilm-{length}.json")[0]


def _over(plain: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [f"{plain[name] / row[name]:.1f}" for name in ("online_s", "online_bytes")]


def _provenance(report: dict[str, Any], name: str) -> str:
    """On what and at which commit a result was measured, and whether the code has changed since."""
    machine, versions = report["machine"], (report if "versions" in report else report["blindformer"])["versions"]
    level = f"Level {machine['level']}, " if "level" in machine else ""
    old = ", older than the code" if name in admitted(CHANGELOG.read_text(encoding="utf-8")) else ""
    return (
        f"{level}{machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}, "
        f"commit {report['commit'][:7]}{old}"
    )


def _changes(changelog: str, name: str) -> int:
    return sum(name in names.split(", ") for names in CHANGES.findall(changelog))
