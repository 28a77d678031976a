"""What is said of a server on the network, at each limit and beyond it."""

from dataclasses import replace

import pytest

from verger.lan.records import (
    MAX_FOREIGN_TXT_BYTES,
    MAX_LISTED_MODELS,
    MAX_NAME_BYTES,
    MAX_STRING_BYTES,
    MAX_SUFFIX_BYTES,
    MAX_TXT_BYTES,
    Advert,
    decode_txt,
    encode_txt,
    host_label,
    instance_name,
    is_host,
    pack_txt,
    saturn_txt,
)

ADVERT = Advert(
    name="office-mini",
    port=8374,
    id="6b0f2b1e-3a5d-4c63-9a0e-0c7f5a1d2e3f",
    model_ids=("gpt-oss-20b", "gpt-oss-120b"),
    needs_key=True,
    has_tls=False,
    version="0.1.0",
)
FIELDS = {
    "txtvers": "1",
    "proto": "openai",
    "path": "/v1",
    "auth": "bearer",
    "tls": "0",
    "ver": "0.1.0",
    "id": ADVERT.id,
    "m0": "gpt-oss-20b",
    "m1": "gpt-oss-120b",
}


def on_the_wire(fields: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in fields.items()}


def decode(changes: dict[str, str]) -> Advert | None:
    return decode_txt("office-mini", 8374, on_the_wire(FIELDS | changes))


def test_a_record_says_what_a_client_needs_to_know() -> None:
    assert encode_txt(ADVERT) == FIELDS
    assert encode_txt(replace(ADVERT, needs_key=False))["auth"] == "none"
    assert encode_txt(replace(ADVERT, has_tls=True))["tls"] == "1"


@pytest.mark.parametrize(
    "advert",
    [
        ADVERT,
        replace(ADVERT, needs_key=False, has_tls=True, path="/other/v1"),
        replace(ADVERT, name="Büro 2", model_ids=("ein modell=ö",)),
    ],
)
def test_what_is_encoded_is_decoded(advert: Advert) -> None:
    assert decode_txt(advert.name, advert.port, on_the_wire(encode_txt(advert))) == advert


def test_up_to_six_models_are_listed_and_more_are_counted() -> None:
    models = tuple(f"model-{number}" for number in range(MAX_LISTED_MODELS + 1))
    six = encode_txt(replace(ADVERT, model_ids=models[:-1]))
    seven = encode_txt(replace(ADVERT, model_ids=models))

    assert (six["m5"], "models" in six) == ("model-5", False)
    assert seven["models"] == "7"
    assert not {"m0", "m6"} & set(seven)
    found = decode_txt("x", 1, on_the_wire(seven))
    assert found is not None
    assert found.model_ids == ()


def test_a_record_is_no_longer_than_its_limit() -> None:
    def record(length: int) -> dict[str, str]:
        return encode_txt(replace(ADVERT, model_ids=("a" * 200, "b" * length)))

    room = MAX_TXT_BYTES - len(pack_txt(record(1))) + 1
    assert len(pack_txt(record(room))) == MAX_TXT_BYTES
    assert record(room)["m1"] == "b" * room
    assert record(room + 1)["models"] == "2"
    assert len(pack_txt(record(room + 1))) < MAX_TXT_BYTES


def test_a_string_is_no_longer_than_its_limit() -> None:
    at = MAX_STRING_BYTES - len("m0=")
    assert encode_txt(replace(ADVERT, model_ids=("é" * (at // 2),)))["m0"]
    assert encode_txt(replace(ADVERT, model_ids=("a" * at,)))["m0"]
    assert encode_txt(replace(ADVERT, model_ids=("a" * (at + 1),)))["models"] == "1"


def test_the_saturn_record_has_its_conventions_fields_and_no_secret() -> None:
    assert saturn_txt(ADVERT) == {
        "version": "1",
        "api_type": "openai",
        "deployment": "network",
        "priority": "50",
        "features": "chat,tools",
        "id": ADVERT.id,
    }


def test_each_string_is_packed_after_its_length() -> None:
    assert pack_txt({"a": "b", "key": "ö"}) == b"\x03a=b\x06key=\xc3\xb6"


def test_unknown_fields_are_ignored_and_keys_have_no_case() -> None:
    assert decode({"later": "x", "flag": ""}) == ADVERT
    shouted = {key.upper(): value for key, value in FIELDS.items()}
    assert decode_txt("office-mini", 8374, on_the_wire(shouted)) == ADVERT


@pytest.mark.parametrize(
    "changes",
    [
        {"txtvers": "2"},
        {"proto": "ipp"},
        {"id": "6b0f2b1e"},
        {"id": ADVERT.id.upper()},
        {"auth": "basic"},
        {"tls": "yes"},
        {"path": "v1"},
        {"path": "/v1?key=x"},
        {"path": "/v1 "},
        {"ver": ""},
        {"m0": "\x1b]0;owned\x07"},
        {"later": "a\nb"},
    ],
)
def test_a_foreign_or_damaged_record_is_none(changes: dict[str, str]) -> None:
    assert decode(changes) is None


@pytest.mark.parametrize("field", ["txtvers", "proto", "path", "auth", "tls", "ver", "id"])
def test_a_record_without_one_of_its_fields_is_none(field: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != field}
    assert decode_txt("x", 1, on_the_wire(fields)) is None


@pytest.mark.parametrize("properties", [{}, {b"id": None}, {**on_the_wire(FIELDS), b"m0": b"\xff"}])
def test_what_is_no_text_is_none(properties: dict[bytes, bytes | None]) -> None:
    assert decode_txt("x", 1, properties) is None


@pytest.mark.parametrize(
    ("name", "port"), [("", 1), ("a\x1b[2J", 1), ("é" * 32, 1), ("x", 0), ("x", 65_536)]
)
def test_a_name_or_port_that_cannot_be_is_none(name: str, port: int) -> None:
    assert decode_txt(name, port, on_the_wire(FIELDS)) is None


def test_a_foreign_record_is_looked_at_up_to_its_limit() -> None:
    fields = on_the_wire(FIELDS)
    used = len(pack_txt(FIELDS)) + 5 * len(b"_k0=-")  # Each with its length.
    room = MAX_FOREIGN_TXT_BYTES - used
    lengths = [room // 5] * 4 + [room - room // 5 * 4]
    for number, length in enumerate(lengths):
        fields[f"k{number}".encode()] = b"v" * (length + 1)
    assert decode_txt("office-mini", 8374, fields) == ADVERT
    fields[b"k0"] = b"v" * (lengths[0] + 2)
    assert decode_txt("office-mini", 8374, fields) is None


def test_a_foreign_string_is_looked_at_up_to_its_limit() -> None:
    assert decode({"k": "v" * MAX_STRING_BYTES}) == ADVERT
    assert decode({"k": "v" * (MAX_STRING_BYTES + 1)}) is None


def test_a_name_is_one_label_with_room_for_a_number() -> None:
    limit = MAX_NAME_BYTES - MAX_SUFFIX_BYTES
    assert instance_name("Office Mini") == "Office Mini"
    assert instance_name("mini.office\n") == "mini-office"
    assert instance_name("a" * limit) == "a" * limit
    assert instance_name("a" * (limit + 1)) == "a" * limit
    assert instance_name("a" * (limit - 1) + "é") == "a" * (limit - 1)
    assert instance_name(" \t") == "verger"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("office-mini", "office-mini"),
        ("Office Mini (2)", "office-mini-2"),
        ("Büro", "b-ro"),
        ("事務所", "verger"),
        ("a" * 64, "a" * 63),
    ],
)
def test_a_host_has_letters_that_a_url_can_carry(name: str, label: str) -> None:
    assert host_label(name) == label


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("office-mini.local", True),
        ("a.b-2.local", True),
        ("a" * 63 + ".local", True),
        ("a" * 64 + ".local", False),
        ("local", False),
        ("-a.local", False),
        ("office mini.local", False),
        ("user@evil.local", False),
        ("office-mini.example.org", False),
        ("a." * 125 + "local", True),
        ("a." * 126 + "local", False),
    ],
)
def test_a_host_is_one_of_the_local_network(host: str, expected: bool) -> None:
    assert is_host(host) is expected
