"""The interface as a page of HTML, from its OpenAPI description: no script, and nothing from another host."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h2{margin-top:2rem;font-size:1.1rem}code{background:#eee;padding:.1rem .3rem}table{border-collapse:collapse}
td,th{text-align:left;padding:.1rem 1rem .1rem 0;vertical-align:top}"""


def page(schema: dict[str, Any]) -> str:
    """The paths of an OpenAPI schema, and its models."""
    info = schema["info"]
    parts = [f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>"]
    parts.append('<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>')
    for path, methods in schema["paths"].items():
        parts += [_operation(path, method, found) for method, found in methods.items()]
    parts.append("<h2>What they are made of</h2>")
    parts += [_model(name, found) for name, found in schema.get("components", {}).get("schemas", {}).items()]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{escape(info["title"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{body}</html>\n'


def _operation(path: str, method: str, found: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(status)}<td>{escape(reply.get('description', ''))}<td>{_form(reply)}"
        for status, reply in found.get("responses", {}).items()
    )
    sent = found.get("requestBody", {}).get("content", {})
    body = f"<p>Body: {', '.join(f'<code>{escape(kind)}</code>' for kind in sent)}</p>" if sent else ""
    what = escape(found.get("description", found.get("summary", "")))
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{what}</p>{body}<table>{rows}</table>"


def _form(reply: dict[str, Any]) -> str:
    content = reply.get("content", {})
    names = [item.get("schema", {}).get("$ref", "").rpartition("/")[2] or kind for kind, item in content.items()]
    return ", ".join(f"<code>{escape(name)}</code>" for name in names)


def _model(name: str, found: dict[str, Any]) -> str:
    fields = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{escape(str(item.get('type', 'any')))}"
        for field, item in found.get("properties", {}).items()
    )
    return f"<h3>{escape(name)}</h3><p>{escape(found.get('description', ''))}</p><table>{fields}</table>"
