"""A file of the disk tier is believed only if every bit of it is as it was written."""

import hashlib
import io
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verger.engine import disk_format
from verger.engine.disk_counts import (
    PRIOR_READ_BYTES_PER_S,
    PRIOR_WEIGHT_BYTES,
    KnownFiles,
    ReadRate,
)
from verger.engine.disk_format import UnusableFile, encode_head, is_name, read_head, read_payload
from verger.engine.prefix_files import FileHeader

PAYLOAD = bytes(range(200))


def header_of(
    payload: bytes, name: str = "a1", tokens: tuple[int, ...] = (1, 200_000)
) -> FileHeader:
    window_bytes = len(payload) // 4
    kv_bytes = len(payload) - window_bytes
    return FileHeader(name, "tenant", 7, list(tokens), "", kv_bytes, window_bytes, 3)


def encoded(payload: bytes = PAYLOAD, fingerprint: str = "nano-1") -> bytes:
    head = encode_head(header_of(payload), fingerprint)
    assert head is not None
    digest = disk_format.payload_digest(head[-disk_format.DIGEST_BYTES :], payload)
    return head + payload + digest


def decoded(
    content: bytes, fingerprint: str = "nano-1", name: str = "a1"
) -> tuple[FileHeader, bytes]:
    file = io.BytesIO(content)
    head = read_head(file, len(content), fingerprint, name)
    return head.header, read_payload(file, head)


def sealed(start: bytes, label: bytes) -> bytes:
    """A head whose checksum is right, whatever it says, before nothing."""
    head = start + label
    digest = hashlib.sha256(head).digest()
    return head + digest + disk_format.payload_digest(digest, b"")


@given(st.binary(max_size=300), st.sampled_from(["", "nano-1", "ε" * 99]))
def test_a_file_reads_back_as_it_was_written(payload: bytes, fingerprint: str) -> None:
    content = encoded(payload, fingerprint)
    assert decoded(content, fingerprint) == (header_of(payload), payload)


def test_every_flipped_bit_is_noticed() -> None:
    content = encoded()
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UnusableFile):
            decoded(bytes(damaged))


def test_every_truncation_and_every_addition_is_noticed_before_the_payload_is_read() -> None:
    content = encoded()
    for size in range(len(content)):
        with pytest.raises(UnusableFile):
            read_head(io.BytesIO(content[:size]), size, "nano-1", "a1")
    with pytest.raises(UnusableFile):
        read_head(io.BytesIO(content + b"\0"), len(content) + 1, "nano-1", "a1")


@given(st.data())
def test_any_overwritten_stretch_is_noticed(data: st.DataObject) -> None:
    content = encoded()
    first = data.draw(st.integers(0, len(content) - 1))
    stretch = data.draw(st.binary(min_size=1, max_size=len(content) - first))
    damaged = content[:first] + stretch + content[first + len(stretch) :]
    if damaged != content:
        with pytest.raises(UnusableFile):
            decoded(damaged)


def test_a_payload_is_not_believed_behind_the_header_of_another_file() -> None:
    head = encode_head(header_of(PAYLOAD, tokens=(5, 6)), "nano-1")
    assert head is not None
    payload_and_digest = encoded()[-len(PAYLOAD) - disk_format.DIGEST_BYTES :]
    with pytest.raises(UnusableFile, match="payload damaged"):
        decoded(head + payload_and_digest)


def test_files_of_another_model_or_under_another_name_are_foreign() -> None:
    with pytest.raises(UnusableFile):
        decoded(encoded(), fingerprint="nano-2")
    with pytest.raises(UnusableFile):
        decoded(encoded(), name="a2")


@pytest.mark.parametrize(
    ("magic", "version"),
    [
        (b"VERGERKX", disk_format.FORMAT_VERSION),
        (disk_format.MAGIC, disk_format.FORMAT_VERSION + 1),
    ],
)
def test_files_of_another_format_are_foreign(magic: bytes, version: int) -> None:
    label = b"no header of ours"
    with pytest.raises(UnusableFile, match="another format"):
        decoded(sealed(struct.pack("<8sII", magic, version, len(label)), label))


@pytest.mark.parametrize("label", [b"", b"\xc1", msgspec.msgpack.encode({"fingerprint": "x"})])
def test_a_header_with_a_right_checksum_and_no_sense_is_foreign(label: bytes) -> None:
    start = struct.pack("<8sII", disk_format.MAGIC, disk_format.FORMAT_VERSION, len(label))
    with pytest.raises(UnusableFile, match="header of another format"):
        decoded(sealed(start, label))


def test_a_header_is_as_long_as_the_limit_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded()
    label_bytes = struct.unpack_from("<I", content, 12)[0]
    monkeypatch.setattr(disk_format, "MAX_HEADER_BYTES", label_bytes)
    assert decoded(encoded())[1] == PAYLOAD
    monkeypatch.setattr(disk_format, "MAX_HEADER_BYTES", label_bytes - 1)
    assert encode_head(header_of(PAYLOAD), "nano-1") is None
    with pytest.raises(UnusableFile, match="too long"):
        decoded(content)


def test_the_longest_context_fits_into_a_header() -> None:
    assert encode_head(header_of(b"", tokens=(200_000,) * 131_072), "nano-1") is not None


@pytest.mark.parametrize(
    "name", ["", "../a", "a/b", "/a", "a.b", "A1", "g", "a\n", "a" * 65, "a\0", "٣"]
)
def test_only_digests_are_names(name: str) -> None:
    assert not is_name(name)
    assert is_name("0123456789abcdef" * 4)


def test_known_files_are_counted_once() -> None:
    files = KnownFiles()
    files.add("a", 10)
    files.add("a", 4)
    files.add("b", 1)
    files.drop("c")
    assert (len(files), files.total_bytes, files.bytes_of("a")) == (2, 5, 4)
    files.drop("a")
    assert (files.total_bytes, files.bytes_of("a"), files.bytes_of("c")) == (1, None, None)


def test_the_read_rate_begins_with_the_prior_and_follows_what_is_measured() -> None:
    rate = ReadRate()
    assert rate.seconds(int(PRIOR_READ_BYTES_PER_S)) == pytest.approx(1.0)
    rate.add(int(PRIOR_WEIGHT_BYTES * 0.9), 0.9 * 0.064 * 3)
    assert rate.seconds(int(PRIOR_READ_BYTES_PER_S)) == pytest.approx(2.0)
    for _ in range(200):
        rate.add(1_000, 1e-3)
    assert rate.seconds(1_000) == pytest.approx(1e-3, rel=0.01)
