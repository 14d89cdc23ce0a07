"""The API described: /openapi.json, and the same as HTML at /docs, without scripts and without other servers."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI

from eca_service.api.schemas import response_schemas

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
html { color-scheme: light dark }
h2 { margin-top: 2.5rem; border-top: 1px solid #8884; padding-top: 1.5rem }
h2 b { font: bold 0.8em ui-monospace, monospace; color: #fff; background: #27c }
h2 b { border-radius: 4px; padding: 0.1em 0.5em }
code, pre { font: 0.9em/1.5 ui-monospace, monospace; background: #8882; border-radius: 4px }
code { padding: 0.1em 0.3em } pre { padding: 0.8rem; overflow-x: auto }
table { border-collapse: collapse } td { padding: 0.2rem 1rem 0.2rem 0; vertical-align: top }
"""

_EXAMPLE = """curl --data-binary @cat.jpg "{base_url}/v1/classify?top_k=3"
curl -F file=@cat.jpg -F file=@dog.jpg {base_url}/v1/classify"""


_BASE_URL = "{base_url}"


class ApiDescription:
    """The description of an app, rendered once, so that clients who request it repeatedly take no time from others.

    Args:
        app: The app, with all of its routes.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        # The prefix comes from the settings and not from a request, so there is one.
        self._json: dict[str, bytes] = {}
        self._page = ""

    def to_json(self, root_path: str) -> bytes:
        """Return the OpenAPI description; `root_path` is the prefix that a reverse proxy strips."""
        if root_path not in self._json:
            servers = {"servers": [{"url": root_path}]} if root_path else {}
            self._json[root_path] = json.dumps(self._description() | servers, separators=(",", ":")).encode()
        return self._json[root_path]

    def to_html(self, base_url: str) -> str:
        """Return the page; `base_url` is the URL of the service for this client."""
        self._page = self._page or render_docs(self._description(), _BASE_URL)
        return self._page.replace(_BASE_URL, escape(base_url))

    def _description(self) -> dict[str, Any]:
        """Complete FastAPI's description, in which responses refer to classes, with the schemas of these classes."""
        description = self._app.openapi()
        components = description.get("components", {})
        schemas = components.get("schemas", {}) | response_schemas()
        return description | {"components": components | {"schemas": dict(sorted(schemas.items()))}}


def render_docs(description: Mapping[str, Any], base_url: str) -> str:
    """Return the page.

    Args:
        description: The OpenAPI description.
        base_url: URL of the service for clients, such as http://127.0.0.1:8000 or https://example.com/vision.
    """
    title = escape(description["info"]["title"])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{escape(description['info'].get('summary', ''))} "
        f"For programs: <a href='{escape(base_url)}/openapi.json'>openapi.json</a>.",
        f"<pre>{escape(_EXAMPLE.format(base_url=base_url))}</pre>",
    ]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts += _operation(path, method, operation)
    parts.append("<h2>Schemas</h2>")
    for name, schema in description["components"]["schemas"].items():
        parts += _schema(name, schema)
    return "\n".join(parts)


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{escape(method.upper())}</b> <code>{escape(path)}</code></h2>"
    yield f"<p><strong>{escape(operation.get('summary', ''))}</strong><p>{escape(operation.get('description', ''))}"
    yield "<table>"
    for parameter in operation.get("parameters", ()):
        about = parameter.get("description", "")
        name = f"{{{parameter['name']}}}" if parameter["in"] == "path" else f"?{parameter['name']}="
        yield f"<tr><td><code>{escape(name)}</code><td>{escape(about)}"
    for content_type in operation.get("requestBody", {}).get("content", ()):
        yield f"<tr><td>body<td><code>{escape(content_type)}</code>"
    for status, response in operation.get("responses", {}).items():
        content = response.get("content", {})
        names = ", ".join(_name_of(body.get("schema", {})) or kind for kind, body in content.items())
        yield f"<tr><td>{escape(str(status))}<td>{escape(names)}"
    yield "</table>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{escape(schema.get('description', ''))}<table>"
    for field, about in schema.get("properties", {}).items():
        example = about.get("examples", [""])[0]
        yield f"<tr><td><code>{escape(field)}</code><td>{escape(about.get('description', _name_of(about)))}"
        yield f"<td>{f'<code>{escape(str(example))}</code>' if example != '' else ''}"
    yield "</table>"


def _name_of(schema: Mapping[str, Any]) -> str:
    """Name a schema: by the schema that it refers to, or by its type."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_name_of(one) for one in schema["anyOf"])
    if "items" in schema:
        return f"list of {_name_of(schema['items'])}"
    return str(schema.get("type", ""))
