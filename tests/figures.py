"""The pages' tables of measured figures, from the results that the benches have left in bench/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
MODELS = {"minilm": "MiniLM-L6", "bert-base": "BERT-base", "smollm2": "SmolLM2, a token"}
MB = 1e6


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
        f"at least {int(faithful['cosine_min'] * 1e5) / 1e5:.5f}. {_machine(faithful)}.",
    ]
    return "\n".join(lines) + "\n"


def costs() -> str:
    """The README's table: open models, then private ones."""
    lines = ["| model, plan | weights | in the clear | online | traffic, online + offline |", "|---|---|---|---|---|"]
    open_ones = [report for report in kept("open-models.jsonl") if report["plan"] == "faithful"]
    for report in [*open_ones, *kept("latency-128.jsonl")]:
        token = "_per_token" if "plaintext_s_per_token" in report else ""
        owner = "public" if report["protocol"] == "delegated" else "private"
        clear, online = (report[f"{name}_s{token}"] for name in ("plaintext", "online"))
        traffic = " + ".join(f"{report[f'{name}_bytes{token}'] / MB:.3g}" for name in ("online", "offline"))
        cells = [f"{MODELS[report['model']]}, {report['plan']}", owner, f"{clear:.3f} s"]
        cells += [f"{online:.2f} s ({online / clear:.1f}x)", f"{traffic} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def many() -> str:
    """The tables of docs/comparison.md."""
    head = "parties | dealer | TLS | online | offline | MB online | MB offline | rounds | error | cosine | time "
    head += "| traffic |"
    parts = []
    for length in (32, 128):
        rows = _peers(length)["rows"]
        plain = next(row for row in rows if row["name"] == "crypten, plain")
        parts.append(f"| MiniLM-L6, faithful, length {length} | {head}\n|{'---|' * 13}\n")
        for row in rows:
            far = row["max_abs_error"] > 1
            cells = [row["name"], str(row["parties"]), row["dealer"], "yes" if row["tls"] else "no"]
            cells += [f"{row['online_s']:.2f} s", f"{row['offline_s']:.2f} s" if row["offline_s"] else ""]
            cells += [f"{row[name] / MB:.0f}" if row[name] else "" for name in ("online_bytes", "offline_bytes")]
            cells += [str(row["rounds"] or ""), "diverges" if far else f"{row['max_abs_error']:.3f}"]
            cells += ["" if far else f"{int(row['cosine_min'] * 1e5) / 1e5:.5f}", *_over(plain, row)]
            parts.append(f"| {' | '.join(cells)} |\n")
        parts.append("\n")
    parts.append(
        "Time and traffic: plain CrypTen's figure over the row's, of the same run. Bytes are of all parties. "
        f"{_machine(_peers(128))}, one thread a party.\n"
    )
    return "".join(parts)


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
    """The table of docs/models.md."""
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
    return "\n".join([*lines, "", f"{_machine(reports[0])}, loopback with TLS, every answer checked."]) + "\n"


def kept(name: str) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def _peers(length: int) -> dict[str, Any]:
    return kept(f"peers-minilm-{length}.json")[0]


def _over(plain: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [f"{plain[name] / row[name]:.1f}" for name in ("online_s", "online_bytes")]


def _machine(report: dict[str, Any]) -> str:
    machine, versions = report["machine"], (report if "versions" in report else report["blindformer"])["versions"]
    level = f"Level {machine['level']}, " if "level" in machine else ""
    return f"{level}{machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}"
