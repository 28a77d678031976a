"""The page /connect: what to paste into each client, as one HTML file without scripts or resources.

Called by the gateway's endpoint. Pure. Every value is escaped; the policy forbids the browser to
load or run anything but the style below, known by its hash (Content Security Policy, section 6.6).
"""

import base64
import hashlib
from html import escape

from verger.connect.entries import Client, ClientFile, Facts, render

FIRST = "curl"
"""Stands before the others, which are in order of their names."""
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}pre{padding:.8rem;overflow-x:auto;border:1px solid #8886;"
    "border-radius:.3rem}h2{margin-top:2rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def connect_page(facts: Facts, clients: list[Client]) -> str:
    """The whole page for a client that reached this server at the address in `facts`."""
    title = f"Connect to {escape(facts.address.base_url)}"
    ordered = sorted(clients, key=lambda client: (client.name != FIRST, client.name))
    sections = "".join(_section(render(client, facts)) for client in ordered)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f"<p>It serves <code>{escape(facts.model)}</code> with a context of "
        f"{facts.context_tokens:,} tokens. With <code>pip install verger</code>, "
        "<code>verger env</code> sets the variables of a shell and <code>verger connect CLIENT "
        "--write</code> does what stands below. If this server asks for a key, put yours into "
        "<code>OPENAI_API_KEY</code>; it stands in none of these files.</p>\n"
        f"{sections}</body></html>\n"
    )


def _section(client: Client) -> str:
    files = "".join(_file(file) for file in client.files)
    then = "<p>Then:</p>\n" if files else ""
    note = f"<p>{escape(client.note.strip())}</p>\n" if client.note else ""
    return (
        f'<h2 id="{escape(client.name)}">{escape(client.title)}</h2>\n'
        f"{files}{then}<pre>{escape(client.use.strip())}</pre>\n{note}"
    )


def _file(file: ClientFile) -> str:
    path = escape(file.path.replace("CONFIG/", "~/.config/"))
    return f"<p><code>{path}</code>:</p>\n<pre>{escape(file.content.strip())}</pre>\n"
