"""`blindformer search MODEL --file docs.csv QUESTION...`: semantic search in private documents."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ...models.loading.packaged import check_name
from ..config import load_settings
from ..registry import compiled_for, open_client
from . import options
from .commands import Without
from .items import InputItem, complain, folder_first, listed, note_columns, raise_if_all
from .output import print_result, table
from .progress import Phases
from .steps import Weights, check_there, loading, published

SHOWN = 120  # characters of a document


def search(
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[MODEL] [QUESTION]...",
            help="An embedding model or a compiled folder; then questions (default: only make the index).",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        Option(help="The documents: a table, or a text file, one text a line (default: none)."),
    ] = None,
    field: Annotated[
        str | None,
        Option(help="Column of the texts, or two with a comma (default: as in training, else a usual name)."),
    ] = None,
    index: Annotated[
        Path | None, Option(help="The file of the documents' vectors (default: beside the documents, FILE.index).")
    ] = None,
    top: Annotated[int, Option(min=1, help="Documents to show for each question.")] = 5,
    weights: Annotated[Weights, Without("--config")] = None,
    config: options.Config = None,
    form: options.Form = "text",
) -> None:
    """Find documents by meaning. Each is embedded privately once, and ranked on this machine.

    With --config the deployment's server is queried; else all parties run on this machine.
    """
    if file is None:
        raise BlindformerError("search: say which documents: --file FILE, a table of texts, or texts, one a line")
    check_there("--file", file)
    given = words or []
    if config is not None:
        model, questions = folder_first(given, config, "search")
    elif given:
        model, questions = check_name(given[0]), given[1:]
    else:
        raise BlindformerError("search: give a model first, such as minilm, or --config FILE that names a folder")
    if not all(question.strip() for question in questions):
        raise BlindformerError("a question is empty: write something, or leave it out")
    with loading(1, parties=config is None) as phases:
        from ...models.data.reading import text_rows
        from ..client.search_index import SearchIndex

        rows = [*text_rows(file, listed(field) or ())]
        note_columns(file, field)
        items = [
            InputItem(_whole(row.text), n, str(file), row.line, row.id, row.error) for n, row in enumerate(rows, 1)
        ]
        faults: dict[int, Any] = {place: item.error for place, item in enumerate(items) if item.error is not None}
        raise_if_all(items, faults)
        phases.end("load")
        kept = index or file.with_name(f"{file.name}.index")
        with closing(_client(phases, model, weights, config)) as client:
            good = [place for place, item in enumerate(items) if item.error is None]
            vectors = SearchIndex(client, kept)
            update = vectors.update([items[place].value for place in good])
            faults |= {good[place]: error for place, error in update.errors.items()}
            raise_if_all(items, faults)
            hits = [[(items[good[hit.place]], hit.score) for hit in vectors.search(q, top)] for q in questions]
    for place in sorted(faults):
        complain(items, place, faults[place])
    searched = len(items) - len(faults)
    summary = f"documents {searched:,}, of them new {update.embedded:,}   index {kept}"
    results = [
        {"question": question, "hits": [{**_place(item), "score": score, "text": item.value} for item, score in ranked]}
        for question, ranked in zip(questions, hits, strict=True)
    ]
    facts = {"model": client.part.name, "index": kept, "documents": searched, "embedded": update.embedded}
    print_result(form, {**facts, "results": results}, *(_table(one) for one in results), summary)
    if faults:
        raise Exit(1)


def _client(phases: Phases, model: Any, weights: Any, config: Path | None) -> Any:
    """Texts that are too long are read in windows: all of a document can be found."""
    if config is None:
        from ..client.pipeline import pipeline

        owners = published([model], weights)
        return pipeline(None, model, weights=owners, truncation="windows", progress=phases.step)
    protocol = compiled_for(model) or load_settings(config).session.protocol
    return open_client(protocol, None, folder=model, config=config, truncate="windows", progress=phases.step)


def _whole(text: Any) -> str:
    """A document of two columns, such as a title and a body, is one text."""
    return text if isinstance(text, str) else "\n".join(text)


def _place(item: InputItem) -> dict[str, Any]:
    return {name: value for name, value in item.place.items() if name in ("line", "id")}


def _table(result: dict[str, Any]) -> Any:
    rows = [
        (f"{hit['score']:.3f}", escape(str(hit.get("id", hit["line"]))), _short(hit["text"])) for hit in result["hits"]
    ]
    where = "id" if any("id" in hit for hit in result["hits"]) else "line"
    return table("score", where, "document", title=f'"{escape(result["question"])}"', right=(0,), rows=rows)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return escape(line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}...")
