"""The interface as a page of HTML, from its OpenAPI description: no script, and nothing from another host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --soft: #8882; --line: #8884; --link: #2563a8 }
@media (prefers-color-scheme: dark) { :root { --link: #8ab8ec } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 }
h4 { font-size: .85rem; margin: 1rem 0 .2rem; opacity: .7 }
section { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; margin: 1rem 0 }
section p { margin: .4rem 0 }
code, pre { font: .9em ui-monospace, monospace; background: var(--soft); border-radius: .25rem }
code { padding: .1rem .3rem }
pre { padding: .6rem .8rem; overflow-x: auto }
a { color: var(--link); text-decoration: none }
a:hover { text-decoration: underline }
table { border-collapse: collapse; width: 100% }
td { text-align: left; padding: .25rem 1rem .25rem 0; vertical-align: top; border-top: 1px solid var(--line) }
tr:first-child td { border-top: 0 }
td:first-child, td:nth-child(2) { width: 20% }
nav a { display: block; padding: .1rem 0 }
.path { background: none; padding: 0; font-weight: 600; overflow-wrap: anywhere }
.method { display: inline-block; min-width: 3.6rem; text-align: center; margin-right: .5rem; color: #fff;
          border-radius: .25rem; font: bold .75rem/1.5rem system-ui }
.get { background: #2b6cb0 } .post { background: #2f7d4f } .put { background: #9a6700 } .delete { background: #b3362b }
"""


def docs_page(schema: dict[str, Any]) -> str:
    """The paths of an OpenAPI schema, and its models."""
    info = schema["info"]
    operations = [
        (path, method, found) for path, methods in schema["paths"].items() for method, found in methods.items()
    ]
    entries = (
        f'<a href="#{escape(found["operationId"])}">{_name(path, method)}</a>' for path, method, found in operations
    )
    schemas = schema.get("components", {}).get("schemas", {})
    parts = [
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        _text(info.get("description", "")),
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>',
        f"<nav>{''.join(entries)}</nav>",
        "<h2>Requests</h2>",
        *(_operation(*operation) for operation in operations),
        "<h2>Schemas</h2>",
        *(_model(name, found) for name, found in schemas.items()),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _name(path: str, method: str) -> str:
    return (
        f'<span class="method {escape(method)}">{escape(method.upper())}</span><code class="path">{escape(path)}</code>'
    )


def _operation(path: str, method: str, found: dict[str, Any]) -> str:
    parts = [f"<h3>{_name(path, method)}</h3>", _text(found.get("description", found.get("summary", "")))]
    if found.get("parameters"):
        rows = (
            (p["name"], f"{_type(p['schema'])}, in the {p['in']}", p.get("description", ""))
            for p in found["parameters"]
        )
        parts.append(f"<h4>Parameters</h4>{_table(rows)}")
    if body := found.get("requestBody"):
        rows = (
            (kind, _type(item.get("schema", {})), body.get("description", "")) for kind, item in body["content"].items()
        )
        parts.append(f"<h4>Body</h4>{_table(rows)}")
    replies = ((status, _content(reply), _reply(reply)) for status, reply in found["responses"].items())
    parts.append(f"<h4>Responses</h4>{_table(replies)}")
    return f'<section id="{escape(found["operationId"])}">{"".join(parts)}</section>'


def _content(reply: dict[str, Any]) -> str:
    found = reply.get("content", {}).items()
    return ", ".join(
        _type(item.get("schema", {})) + (f"<br>{escape(kind)}" if kind != "application/json" else "")
        for kind, item in found
    )


def _reply(reply: dict[str, Any]) -> str:
    headers = reply.get("headers", {}).items()
    return "; ".join([reply.get("description", ""), *(f"`{name}`: {item['description']}" for name, item in headers)])


def _model(name: str, found: dict[str, Any]) -> str:
    rows = [(field, _type(item), item.get("description", "")) for field, item in found.get("properties", {}).items()]
    described = _text(found.get("description", ""))
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3>{described}{_table(rows)}</section>'


def _type(schema: dict[str, Any]) -> str:
    """In words, as HTML; another schema's name leads there."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(item) for item in schema["anyOf"] if item.get("type") != "null")
    if schema.get("prefixItems"):
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return "bytes" if schema.get("format") == "binary" else escape(schema.get("type", "any"))


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    """A name, a type (HTML), and what it is."""
    made = (f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{_words(what)}" for name, kind, what in rows)
    return f"<table>{''.join(made)}</table>"


def _words(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _text(text: str) -> str:
    """Paragraphs; what is indented is shown as it stands."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return "".join(
        f"<pre>{escape(part.strip())}</pre>" if part.startswith("    ") else f"<p>{_words(part)}</p>" for part in parts
    )
