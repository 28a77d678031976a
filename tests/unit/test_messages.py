"""The wire: what is sent arrives, fields are only ever appended, neutral means neutral."""

import msgspec
import pytest

from verger.messages import (
    BACKGROUND,
    BATCH,
    INTERACTIVE,
    PROTOCOL_VERSION,
    CacheStats,
    Cancel,
    Drain,
    Fatal,
    Finished,
    FinishReason,
    Found,
    FromEngine,
    Heartbeat,
    Hello,
    Logprob,
    LookUp,
    PrefillStats,
    Progress,
    Ready,
    Rejected,
    RejectReason,
    RowTokens,
    Sampling,
    Stats,
    Submit,
    ToEngine,
    Tokens,
)

TO_ENGINE: list[ToEngine] = [
    Hello(version=1, message_id=200_008, special_ids=[199_998]),
    Submit(request_id=1, prompt=[1, 201_087], max_tokens=3, stop_ids=[200_002]),
    Submit(
        request_id=2**40,
        prompt=[5],
        max_tokens=1,
        stop_ids=[],
        sampling=Sampling(temperature=0.5, logit_bias={3: -100.0}, seed=2**63, choice=1),
        logprobs=20,
        boundaries=[1],
        cache_salt="office",
        grammar="root",
        priority=BATCH,
        resumed_tokens=1,
        forks=[2],
        kept_stop_ids=[200_012],
        caller="a key",
    ),
    Submit(request_id=3, prompt=[1], max_tokens=0, stop_ids=[], priority=BACKGROUND),
    Cancel(1),
    LookUp(1, [5, 6], "office"),
    Drain(),
]
FROM_ENGINE: list[FromEngine] = [
    Ready(1, "nano", 1_048, 4_096, 16, "cpu", 0.5),
    *(Rejected(1, reason) for reason in RejectReason),
    Progress(1, 512, 4_000),
    Progress(1, 2_048, 4_000, cached_tokens=2_048),
    Tokens([RowTokens(1, [7]), RowTokens(2, [8, 9], [Logprob(-0.5, [8], [-0.5]), Logprob(-1.0)])]),
    *(Finished(1, reason, 3, 4, 2) for reason in FinishReason),
    Found(1, 512, 1_024),
    Stats(1, 2, 3, 4, 5, 6, 7, 8),
    Stats(
        *(1, 2, 3, 4, 5, 6, 7, 8),
        CacheStats(nodes=9, disk_off_reason="full"),
        PrefillStats(0.25, 96, 0.2, 700.0, 0.5, False),
        buffer_bytes=10,
    ),
    Heartbeat(3),
    Fatal("no memory", is_permanent=True),
]
FIELDS = {
    Hello: "version message_id special_ids",
    Submit: "request_id prompt max_tokens stop_ids sampling logprobs boundaries cache_salt grammar "
    "priority resumed_tokens forks kept_stop_ids caller",
    Sampling: "temperature top_p top_k min_p frequency_penalty presence_penalty "
    "repetition_penalty logit_bias seed choice",
    Cancel: "request_id",
    LookUp: "lookup_id prompt cache_salt",
    Drain: "",
    Ready: "version model_id vocabulary_size context_tokens max_rows device load_s",
    Rejected: "request_id reason",
    Progress: "request_id prefilled_tokens prompt_tokens cached_tokens",
    Tokens: "rows",
    RowTokens: "request_id ids logprobs",
    Logprob: "logprob top_ids top_logprobs",
    Finished: "request_id reason prompt_tokens completion_tokens cached_tokens",
    Found: "lookup_id memory_tokens disk_tokens",
    Stats: "running waiting steps prefill_tokens decode_tokens kv_bytes active_bytes peak_bytes "
    "cache prefill buffer_bytes",
    CacheStats: "nodes bytes limit_bytes asked_tokens cached_tokens evictions preemptions "
    "background_tokens disk_files disk_bytes disk_written_bytes disk_read_bytes disk_off_reason "
    "token_bytes window_bytes",
    PrefillStats: "target_itl_s chunk_tokens step_s best_tokens_s efficiency meets_target",
    Heartbeat: "steps",
    Fatal: "message is_permanent",
}


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda message: type(message).__name__)
def test_what_the_gateway_sends_arrives(message: ToEngine) -> None:
    payload = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(payload, type=ToEngine) == message


@pytest.mark.parametrize("message", FROM_ENGINE, ids=lambda message: type(message).__name__)
def test_what_the_engine_sends_arrives(message: FromEngine) -> None:
    payload = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(payload, type=FromEngine) == message


def test_fields_are_only_appended_and_every_change_has_a_version() -> None:
    """Whoever changes a struct changes this table and PROTOCOL_VERSION together."""
    assert PROTOCOL_VERSION == 6
    for struct, fields in FIELDS.items():
        assert " ".join(struct.__struct_fields__) == fields, struct


def test_every_message_is_in_the_table_of_fields() -> None:
    messages = {type(message) for message in [*TO_ENGINE, *FROM_ENGINE]}
    parts = {Sampling, RowTokens, Logprob, CacheStats, PrefillStats}
    assert messages | parts == set(FIELDS)


def test_the_lower_priority_has_the_higher_number() -> None:
    assert INTERACTIVE == Submit(1, [1], 1, []).priority
    assert INTERACTIVE < BATCH < BACKGROUND


def test_the_two_directions_do_not_mix() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(Drain()), type=FromEngine)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(Heartbeat(1)), type=ToEngine)


def test_a_field_that_a_later_version_appends_is_ignored() -> None:
    assert msgspec.msgpack.decode(
        msgspec.msgpack.encode(["cancel", 7, "appended"]), type=ToEngine
    ) == Cancel(7)
