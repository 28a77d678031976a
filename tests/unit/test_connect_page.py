"""The page /connect: complete, escaped, and without anything that a browser would load or run."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from verger.connect.address import Address
from verger.connect.entries import Client, Facts, load_clients
from verger.connect.page import HEADERS, connect_page

FACTS = Facts(Address("office-mini.local", 8374), "gpt-oss-20b", 131_072)
CLIENTS = load_clients()
HARMLESS = {
    *("html head meta title style body h1 h2 p code pre".split()),
}


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_every_client_stands_on_it_and_curl_first() -> None:
    page = read(connect_page(FACTS, CLIENTS))
    places = [page.text.index(client.title) for client in CLIENTS if client.name != "curl"]
    assert places == sorted(places)
    assert page.text.index("curl: a first test") < places[0]
    assert '"baseURL": "http://office-mini.local:8374/v1"' in page.text
    assert "131,072 tokens" in page.text


def test_it_loads_and_runs_nothing() -> None:
    page = read(connect_page(FACTS, CLIENTS))
    assert page.tags <= HARMLESS
    assert page.attributes <= {"lang", "charset", "name", "content", "id"}


def test_the_policy_allows_its_own_style_and_nothing_else() -> None:
    (style,) = re.findall("<style>(.*?)</style>", connect_page(FACTS, CLIENTS), re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = HEADERS["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert "unsafe" not in policy


def test_whatever_comes_in_is_escaped() -> None:
    """Neither a host nor a model can look like this; the page does not rely on it."""
    evil = '<script>"&'
    facts = Facts(Address(evil, 1), evil, 1)
    page = connect_page(facts, [*CLIENTS, Client("x", evil, evil, note=evil)])
    assert read(page).tags <= HARMLESS
    assert evil in read(page).text
