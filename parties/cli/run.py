"""`blindformer run MODEL TEXT...`: texts through a model in a private session on this machine."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Any

import typer

from .output import (
    MB,
    CalibrateOption,
    EmbeddingOption,
    Format,
    FormatOption,
    LengthOption,
    Phases,
    PlanOption,
    Protocol,
    ThreadsOption,
    TimeoutOption,
    console,
    emit,
    prepare,
    read_plan,
    read_texts,
    table,
    use_threads,
    warn_undistilled,
)

SHOWN = 5  # labels, next tokens


def run(
    model: Annotated[str, typer.Argument(help="A model's folder, a Hugging Face id, or minilm.")],
    text: Annotated[list[str], typer.Argument(help="One or more texts.")],
    plan: PlanOption = "faithful",
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="beaver, or clear: the reference that hides nothing.")
    ] = Protocol.beaver,
    length: LengthOption = "auto",
    calibrate: CalibrateOption = None,
    embedding: EmbeddingOption = "client",
    outputs: Annotated[
        str | None, typer.Option("--outputs", help="Names of outputs to reveal, with commas (default: all).")
    ] = None,
    threads: ThreadsOption = 1,
    timeout: TimeoutOption = 120,
    form: FormatOption = Format.text,
) -> None:
    """Run texts privately: server, dealer and client as three processes of this machine, over TLS."""
    prepare()
    texts = list(text)
    with Phases() as phases:
        phases.begin("load")
        use_threads(threads)
        from ...models.loading import load
        from ..local import compare, compile_text

        chosen, calibration = read_plan(plan), read_texts(calibrate)
        loaded = load(model)
        size = loaded.length_for(texts, length)
        phases.end("load")
        phases.begin("compile")
        compiled = compile_text(
            loaded,
            size,
            chosen,
            texts=calibration,
            embedding=embedding,
            outputs=[name.strip() for name in outputs.split(",")] if outputs else None,
            stage=lambda stage: phases.note("compile", stage),
        )
        phases.end("compile")
        warn_undistilled(compiled.plan)
        inputs = [loaded.encode(item, size) for item in texts]
        found = compare(
            loaded,
            compiled,
            inputs,
            protocol=protocol.value,
            threads=threads,
            timeout=timeout,
            progress=phases.step,
        )
    results = [{"text": item, **_read(loaded, private)} for item, private in zip(texts, found.private, strict=True)]
    summary = found.summary(model, size, normalised=loaded.kind == "sentence")
    if loaded.kind == "sentence" and len(texts) > 1:
        summary["similarities"] = _similarities(results)
    if form is Format.json:
        emit({**summary, "results": results, "learned": found.reports[-1].learned})
        return
    _show(loaded, results, summary)


def _read(loaded: Any, output: dict[str, Any]) -> dict[str, Any]:
    """An answer in the terms of the model's task. The client does this, in the clear."""
    import torch

    if loaded.kind == "sentence" and "sentence_embedding" in output:
        return {"embedding": torch.nn.functional.normalize(output["sentence_embedding"][0], dim=0).tolist()}
    if loaded.kind == "classifier" and "logits" in output:
        probabilities = torch.softmax(output["logits"][0], -1)
        order = probabilities.argsort(descending=True)[:SHOWN].tolist()
        return {
            "labels": [{"label": loaded.labels.get(i, str(i)), "probability": float(probabilities[i])} for i in order]
        }
    if loaded.kind == "causal" and "logits" in output:
        logits = output["logits"]
        probabilities = torch.softmax(logits[0] if logits.ndim == 2 else logits[0, -1], -1)
        order = probabilities.argsort(descending=True)[:SHOWN].tolist()
        return {
            "next": [{"token": loaded.processor.decode([i]), "probability": float(probabilities[i])} for i in order]
        }
    return {"outputs": {name: {"shape": list(v.shape), "head": v.flatten()[:8].tolist()} for name, v in output.items()}}


def _similarities(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cosines of all pairs; embeddings are of length one."""
    return [
        {
            "a": a["text"],
            "b": b["text"],
            "cosine": sum(x * y for x, y in zip(a["embedding"], b["embedding"], strict=True)),
        }
        for a, b in combinations(results, 2)
    ]


def _show(loaded: Any, results: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    out = console()
    if summary["protocol"] == "clear":
        out.print("protocol clear: the reference, in one process; it hides nothing")
    else:
        out.print("two parties and an offline dealer, semi-honest, 128 bits   TLS 1.3   plan " + summary["plan"])
    out.print(f"model {loaded.name}   texts {len(results)}, padded to {summary['length']} tokens\n")
    if "similarities" in summary:
        rows = table("text", "text", "cosine", right=(2,))
        for pair in sorted(summary["similarities"], key=lambda pair: -pair["cosine"]):
            rows.add_row(pair["a"], pair["b"], f"{pair['cosine']:.4f}")
    else:
        rows = table("text", "answer")
        for result in results:
            rows.add_row(result["text"], _in_words(result))
    out.print(rows)
    out.print(
        f"\na text: offline {summary['offline_s']:.2f} s, {summary['offline_bytes'] / MB:.1f} MB   online "
        f"{summary['online_s']:.2f} s, {summary['online_bytes'] / MB:.1f} MB, {summary['rounds']} rounds   "
        f"in the clear {summary['plaintext_s'] * 1000:.0f} ms\n"
        f"largest error against float32 {summary['max_abs_error']:.4f}, cosine at least {summary['cosine_min']:.6f}"
    )


def _in_words(result: dict[str, Any]) -> str:
    if "embedding" in result:
        head = ", ".join(f"{x:.3f}" for x in result["embedding"][:6])
        return f"{len(result['embedding'])} numbers: {head}, ..."
    for key, name in (("labels", "label"), ("next", "token")):
        if key in result:
            return "   ".join(f"{row[name]!r} {row['probability']:.1%}" for row in result[key])
    return "   ".join(f"{name} {value['shape']}" for name, value in result["outputs"].items())
