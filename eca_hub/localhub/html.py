"""HTML pages. Everything from a repository is escaped, and the content security policy forbids scripts."""

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from markdown_it import MarkdownIt

from eca_hub.localhub.commits import Commit
from eca_hub.localhub.validation import RepoId

MAX_CARD_CHARS = 200_000
MAX_ROWS = 1_000

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a2433 }
a { color: #0a58b5 }
table { border-collapse: collapse }
td, th { padding: .3rem .8rem; border-bottom: 1px solid #d8dee6; text-align: left }
pre { background: #f3f5f8; padding: .8rem; overflow-x: auto }
code { font-family: ui-monospace, monospace; font-size: .9em }
img { max-width: 100% }
.muted { color: #5b6777 }
.tag { background: #e8eef6; border-radius: .3rem; padding: 0 .4rem; margin-right: .3rem }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CSP = (
    f"default-src 'none'; img-src 'self'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def index_page(base_url: str, repos: Iterable[tuple[str, str, dict[str, Any]]]) -> str:
    """The list of repositories: path, type and JSON of each."""
    rows = [
        f'<tr><td><a href="{escape(base_url)}/{quote(path)}">{escape(path)}</a></td><td>{escape(kind)}</td>'
        f"<td>{_tags(info['tags'])}</td><td>{escape(str(info['lastModified'])[:10])}</td></tr>"
        for path, kind, info in list(repos)[:MAX_ROWS]
    ]
    table = "<table><tr><th>name</th><th>type</th><th>tags</th><th>changed</th></tr>" + "".join(rows) + "</table>"
    nothing = (
        f"<p>Nothing here yet. Publish: <code>HF_ENDPOINT={escape(base_url)} eca-hub push FOLDER OWNER/NAME</code></p>"
    )
    return _page("Local hub", f"<h1>Local hub</h1>{table if rows else nothing}")


def repo_page(base_url: str, repo_id: RepoId, refs: dict[str, str], commit_id: str, commit: Commit, card: str) -> str:
    """A repository at a commit: card, files, branches and tags."""
    home = f"{base_url}/{quote(repo_id.url_path)}"
    files_url = f"{home}/resolve/{commit_id}/"
    rows = [
        f'<tr><td><a href="{escape(files_url + quote(path))}">{escape(path)}</a></td><td>{file.size_bytes:,}</td></tr>'
        for path, file in sorted(commit.files.items())[:MAX_ROWS]
    ]
    names = [ref.removeprefix("refs/heads/").removeprefix("refs/tags/") for ref in sorted(refs)[:MAX_ROWS]]
    links = [f'<a href="{escape(home)}/tree/{quote(name, safe="")}">{escape(name)}</a>' for name in names]
    about = " &middot; ".join(map(escape, (commit.title, commit.author, commit.date[:19], commit_id[:10])))
    return _page(
        repo_id.full_name,
        f'<p><a href="{escape(base_url)}/">Local hub</a></p>'
        f'<h1>{escape(repo_id.full_name)}</h1><p class="muted">{about}</p>'
        f"<p>{' '.join(links)}</p><article>{render_card(card, files_url)}</article>"
        f"<h2>Files</h2><table><tr><th>path</th><th>bytes</th></tr>{''.join(rows)}</table>",
    )


def render_card(card: str, files_url: str) -> str:
    """Render untrusted Markdown as HTML.

    HTML tags in it are escaped; relative URLs lead to the repository's files.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(card[:MAX_CARD_CHARS])
    for token in (child for block in tokens for child in block.children or []):
        for name in ("href", "src"):
            address = token.attrGet(name)
            if isinstance(address, str):
                token.attrSet(name, _resolve_url(address, files_url))
        if token.type == "link_open":
            token.attrSet("rel", "noopener noreferrer nofollow")
    return str(parser.renderer.render(tokens, parser.options, {}))


def _resolve_url(address: str, files_url: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return "#"
    if parts.scheme or parts.netloc:
        return address if parts.scheme in ("http", "https", "mailto") else "#"
    return address if address.startswith("#") else urljoin(files_url, address)


def _tags(tags: list[str]) -> str:
    return "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags[:6])


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>'
