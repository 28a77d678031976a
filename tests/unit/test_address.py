"""What is taken for an address, a name or a model, and what is not."""

import pytest

from verger.connect.address import (
    DEFAULT_PORT,
    Address,
    is_model_id,
    is_name,
    make_address,
    parse_host_header,
    parse_url,
)
from verger.gateway import settings

HOSTILE = [
    "",
    "a b",
    "a'b",
    'a"b',
    "a;b",
    "$(id)",
    "`id`",
    "a\nb",
    "a\x00b",
    "<script>",
    "a/b",
    "a@b",
    "a#b",
    "-a",
    "a-",
    "a..b",
    ".a",
    "ü.local",
    "a" * 64,
    ".".join(["a" * 50] * 6),
]


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://office-mini.local:9000/v1", "http://office-mini.local:9000"),
        ("http://office-mini.local:9000/v1/", "http://office-mini.local:9000"),
        ("http://Office-Mini.local.", "http://office-mini.local:8374"),
        ("office-mini", "http://office-mini:8374"),
        ("192.168.1.5:80", "http://192.168.1.5"),
        ("https://office.tail1234.ts.net", "https://office.tail1234.ts.net"),
        ("https://office:8374", "https://office:8374"),
        ("http://[FD00::1]:8374", "http://[fd00::1]:8374"),
    ],
)
def test_urls_and_hosts(url: str, root: str) -> None:
    assert parse_url(url).root_url == root
    assert parse_url(url).base_url == f"{root}/v1"


def test_the_default_port_is_the_servers() -> None:
    assert settings.DEFAULT_PORT == DEFAULT_PORT


@pytest.mark.parametrize("host", HOSTILE)
def test_what_is_no_host_is_refused_everywhere(host: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # Each part of it says why in its own words.
        make_address(host, 1, is_tls=False)
    if "/" not in host and "#" not in host:
        with pytest.raises(ValueError):  # noqa: PT011
            parse_host_header(host, is_tls=False)
    if host not in ("a/b", "a@b", "a#b", "a\nb"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_url(f"http://{host}")


@pytest.mark.parametrize(
    ("port", "is_port"), [(0, False), (1, True), (65_535, True), (65_536, False)]
)
def test_ports(port: int, is_port: bool) -> None:
    if is_port:
        assert make_address("a", port, is_tls=False).port == port
    else:
        with pytest.raises(ValueError, match="not a port"):
            make_address("a", port, is_tls=False)


@pytest.mark.parametrize(
    ("host", "is_tls", "expected"),
    [
        ("office-mini.local:8374", False, Address("office-mini.local", 8374)),
        ("office-mini.local", False, Address("office-mini.local", 80)),
        ("office.ts.net", True, Address("office.ts.net", 443, True)),
        ("[::1]:8374", False, Address("::1", 8374)),
    ],
)
def test_host_headers(host: str, is_tls: bool, expected: Address) -> None:
    assert parse_host_header(host, is_tls=is_tls) == expected


@pytest.mark.parametrize(
    "host", ["a:b", "a:99999", "a:1:2", "[::1%25en0]", "u:p@a", "a/../b", "a?b"]
)
def test_host_headers_that_are_none(host: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_host_header(host, is_tls=False)


def test_names() -> None:
    for name in ("office-mini", "office-mini-2", "Büro 1.OG", "Mac mini (2)", "日本", "n" * 63):
        assert is_name(name), name
    for name in ("", " a", "-n", "a'b", "a’b", "a$b", "a\nb", "a\x1bb", "a/b", "n" * 64):
        assert not is_name(name), name


def test_model_ids() -> None:
    for model in ("gpt-oss-20b", "openai/gpt-oss-120b:floor", "m" * 128):
        assert is_model_id(model), model
    for model in ("", "-m", "a b", 'a"b', "a@b", "a$b", "a\nb", "m" * 129):
        assert not is_model_id(model), model
