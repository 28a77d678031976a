import pytest

from verger.log import key_values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "field=plain"),
        (12, "field=12"),
        (0.12345, "field=0.123"),
        ("two words", 'field="two words"'),
        ('a"b', r'field="a\"b"'),
        ("line\nline", r'field="line\nline"'),
        ("a=b", 'field="a=b"'),
        ("", 'field=""'),
        ("/\x1b[2J\r\u2028é", r'field="/\x1b[2J\r\u2028é"'),
        ("a\\b", r"field=a\b"),
        ("a\\ b", r'field="a\\ b"'),
    ],
)
def test_values_are_quoted_when_they_must_be(value: object, expected: str) -> None:
    assert key_values(field=value) == expected


def test_what_is_none_is_left_out() -> None:
    assert key_values(event="start", port=None, host="::1") == "event=start host=::1"
