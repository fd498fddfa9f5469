"""What the HTTP interface says and takes, in words and types: its OpenAPI description but for the routes, and a page.

FastAPI's own /docs loads Swagger's scripts from another host, which learns who reads it and could run anything there.
So the page is ours: the same description as HTML, without a script.
"""

from __future__ import annotations

from html import escape
from typing import Annotated, Any

from fastapi import FastAPI, Path
from pydantic import BaseModel, Field

ABOUT = """Text stays with the client: it sends ciphertexts, and gets ciphertexts back. Ask with a client's
certificate, which says who asks:

    curl --cacert ca.pem --cert client.pem --key client.key https://HOST:PORT/v1/models

Once: reserve room for keys of a program, and upload them. Then: queries. `blindformer query --protocol ckks` and
`bf.EncryptedClient` do it all.

A message is a head of 38 bytes, then objects, each after its length (4 bytes, little-endian). The head: `BFHE`, 2 for
the format, 1, 2 or 3 for keys, request or reply, and the program's SHA-256. The objects are SEAL's own, compressed with
zstd, in the order that `CircuitInfo` says; fresh ciphertexts and keys have a seed in place of their second half."""


class Limit(BaseModel):
    """How much may be asked with one certificate's name."""

    each: int = Field(description="Texts or images in a period. A request counts as all that it has places for.")
    period_s: float = Field(description="Seconds of a period.")


class Problem(BaseModel):
    """What every refusal looks like."""

    error: str = Field(description="What is wrong, and what to do about it, in one line.")
    limit: Limit | None = Field(None, description="With 429.")


class Reserved(BaseModel):
    """A name for a client's evaluation keys."""

    keys: str = Field(description="The name, good with this certificate alone.")
    expires_s: float = Field(description="Seconds of no use after which the keys go.")


class CkksParameters(BaseModel):
    """Of CKKS."""

    degree: int = Field(description="N: a ciphertext has N / 2 slots.")
    scale_bits: int = Field(description="Bits of the scale, and of each prime between the first and the last two.")
    levels: int = Field(description="Rescalings from a fresh ciphertext to the last one.")
    secure: bool = Field(description="Whether they are held to 128 bits.")


class CircuitInfo(BaseModel):
    """What a client and its server must have in common."""

    program: str = Field(description="SHA-256 of the program, hex.")
    parameters: CkksParameters
    texts: int = Field(description="Texts or images of one query.")
    elements: list[int] = Field(
        description="Galois elements, sorted. Keys are that of relinearisation, then one for each of these."
    )
    inputs: list[tuple[int, int]] = Field(
        description="Ciphertexts of a request, in order: number, and depth (levels below a fresh one)."
    )
    outputs: list[tuple[int, int]] = Field(description="Ciphertexts of a reply, likewise.")
    steps: list[str] = Field(description="The model's module of each step.")


class Model(BaseModel):
    """A program, its circuit, and sizes."""

    facts: CircuitInfo
    keys_most_bytes: int = Field(description="The longest that a message of keys can be.")
    request_most_bytes: int = Field(description="The longest that a request can be.")
    reply_most_bytes: int = Field(description="The longest that a reply can be.")
    keys_memory_bytes: int = Field(description="What a client's keys take in a worker's memory.")


class Models(BaseModel):
    """What is served."""

    name: str = Field(description="The model's.")
    plan: str = Field(description="Of its approximations.")
    version: str = Field(description="Blindformer's.")
    models: list[Model] = Field(description="One for each length in tokens.")


class Health(BaseModel):
    healthy: bool
    stopping: bool = Field(description="Told to stop: running queries may finish.")


class ReplyLine(BaseModel):
    """One line of a query's reply. The last has `answer`, or `error` and `status`."""

    accepted: bool | None = Field(None, description="A worker has read keys and ciphertexts, and begins.")
    waiting: bool | None = Field(None, description="Nothing new for ten seconds.")
    done: int | None = Field(None, description="Steps that are done.")
    of: int | None = Field(None, description="Steps in all.")
    layer: str | None = Field(None, description="The module of the step that is done.")
    seconds: float | None = Field(None, description="What it took a worker.")
    answer: str | None = Field(None, description="The reply's message, in base64.")
    error: str | None = Field(None, description="As in Problem: it began, and failed.")
    status: int | None = Field(None, description="What the status would have been.")


Program = Annotated[str, Path(description="SHA-256 of a program, hex: `GET /v1/models` names them.")]
Name = Annotated[str, Path(description="Of keys: `POST /v1/models/{program}/keys` gives it.")]

WHY = {
    400: "Not what it should be: damaged, truncated, of other parameters",
    403: "The certificate is not a client's, or was revoked",
    404: "No such program",
    408: "The body did not come in time",
    409: "A message for another program; or keys that have not arrived whole",
    410: "Keys that are not there, have expired, or belong to another certificate",
    413: "Longer than it can be",
    429: "This certificate has asked all that it may in a period",
    500: "A worker failed on it; nobody else is affected",
    503: "Busy, or stopping",
    504: "The query took too long",
}
LATER = {"Retry-After": {"description": "seconds after which to ask again", "schema": {"type": "integer"}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of one route; a wrong certificate, and a server that is busy, may meet any."""
    replies: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": WHY[status]} for status in sorted({403, 503, *statuses})
    }
    for status in {429, 503} & set(replies):
        replies[status]["headers"] = LATER
    return replies


def message(what: str) -> dict[str, Any]:
    """A body of bytes. `what`: of which kind, and which objects."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "description": what, "content": content}}


LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object a line, as the query gets on",
        "content": {"application/x-ndjson": {"schema": {"$ref": "#/components/schemas/Line"}}},
    }
}


class Interface(FastAPI):
    """FastAPI, whose description says what is so: lines are described, and no 422 is, which nobody ever sends."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            description = super().openapi()
            for methods in description["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            schemas = description["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Line"] = ReplyLine.model_json_schema()
            description["components"]["schemas"] = dict(sorted(schemas.items()))
        assert self.openapi_schema is not None
        return self.openapi_schema


STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
section { border: 1px solid #8884; border-radius: .5rem; padding: 0 1rem; margin: 1rem 0 } pre { overflow-x: auto }
td { padding: .2rem 1rem .2rem 0; vertical-align: top; border-top: 1px solid #8884 } table { border-collapse: collapse }
"""


def docs_page(description: dict[str, Any]) -> str:
    """The routes of an OpenAPI description, and its models: in words, as HTML."""
    info, parts = description["info"], list[str]()
    for path, methods in description["paths"].items():
        for method, item in methods.items():
            rows = [
                (at["name"], f"in the {at['in']}: {at.get('description', '')}") for at in item.get("parameters", [])
            ]
            rows += [("body", item["requestBody"]["description"])] if "requestBody" in item else []
            rows += [(status, reply.get("description", "")) for status, reply in item["responses"].items()]
            parts.append(_section(f"{method.upper()} {path}", item.get("description", item.get("summary", "")), rows))
    for name, model in description["components"]["schemas"].items():
        fields = model.get("properties", {}).items()
        parts.append(
            _section(name, model.get("description", ""), [(at, it.get("description", "")) for at, it in fields])
        )
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><pre>{escape(info['description'])}</pre>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a></p>{"".join(parts)}</body></html>\n'
    )


def _section(name: str, what: str, rows: list[tuple[str, str]]) -> str:
    table = "".join(f"<tr><td><code>{escape(key)}</code><td>{escape(text)}" for key, text in rows)
    return f"<section><h3><code>{escape(name)}</code></h3><p>{escape(what)}</p><table>{table}</table></section>"
