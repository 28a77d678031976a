"""What goes wrong, as the official SDK tells it: exceptions, retries, timeouts, cut streams."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.contract.live import MODEL_ID, Live

pytestmark = pytest.mark.process


def asking(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL_ID, "messages": [{"role": "user", "content": content}], **fields}


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with live.client() as client:
        yield client


REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    (asking("hi", temperature=3), openai.BadRequestError, "invalid_request"),
    (asking("hi", web_search_options={}), openai.BadRequestError, "unsupported_parameter"),
    (asking("hi " * 20_000), openai.BadRequestError, "context_length_exceeded"),
    ({**asking("hi"), "model": "gpt-nothing"}, openai.NotFoundError, "model_not_found"),
    (asking("x" * 9_000_000), openai.APIStatusError, "body_too_large"),
]


@pytest.mark.parametrize(("fields", "exception", "code"), REFUSED)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_refusal_is_the_right_exception_and_is_not_retried(
    live: Live,
    fields: dict[str, Any],
    exception: type[openai.APIStatusError],
    code: str,
    is_streamed: bool,
) -> None:
    before = live.traffic.exchanges
    with live.client(max_retries=3) as client, pytest.raises(exception) as refused:
        client.chat.completions.create(**fields, stream=is_streamed)

    assert refused.value.code == code
    assert refused.value.request_id is not None
    assert live.traffic.exchanges == before + 1


def test_unknown_routes_are_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="a church", model=MODEL_ID)

    assert missing.value.code == "route_not_found"


def test_a_timeout_is_one_and_is_retried_as_often_as_asked(live: Live) -> None:
    attempts: list[httpx2.Request] = []
    with live.client(max_retries=1, timeout=0.2) as client:
        client._client.event_hooks = {"request": [attempts.append]}
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**asking("late"))

    assert len(attempts) == 2


def test_a_stream_that_waits_for_its_prefill_does_not_time_out(client: OpenAI) -> None:
    """The headers and the role are sent at once, so only a pause between chunks counts."""
    stream = client.chat.completions.create(**asking("late"), stream=True, timeout=20)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "at last"


@pytest.mark.parametrize("content", ["fail", "die"])
def test_an_engine_that_fails_is_a_503_that_says_when_to_come_back(
    mortal: Live, content: str
) -> None:
    with mortal.client() as client, pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(**asking(content))

    assert (failed.value.status_code, failed.value.code) == (503, "engine_unavailable")
    assert int(failed.value.response.headers["retry-after"]) > 0


def test_a_stream_whose_engine_dies_is_an_exception(mortal: Live) -> None:
    with mortal.client() as client:
        stream = client.chat.completions.create(**asking("die"), stream=True)
        with pytest.raises(openai.APIError, match="engine stopped") as cut:
            list(stream)
    assert cut.value.code == "engine_unavailable"


def test_a_stream_whose_engine_dies_does_not_end_cleanly(mortal: Live) -> None:
    """For whoever does not look at the error event."""
    with (
        mortal.client() as client,
        client.chat.completions.with_streaming_response.create(
            **asking("die"), stream=True
        ) as response,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        list(response.iter_lines())


def test_a_stream_whose_server_is_killed_is_an_exception(mortal: Live) -> None:
    with mortal.client() as client:
        stream = client.chat.completions.create(**asking("endless"), stream=True)
        next(stream)
        mortal.process.kill()
        with pytest.raises(openai.APIConnectionError):
            list(stream)
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


def test_closing_a_stream_frees_its_row(mortal: Live) -> None:
    """There is one row, and an answer of a minute is in it until the client gives it up."""
    with mortal.client() as client:
        stream = client.chat.completions.create(**asking("endless"), stream=True)
        for _ in range(3):
            next(stream)
        stream.close()
        with client.chat.completions.stream(**asking("endless")) as helped:
            for _ in range(3):
                next(helped)
        answer = client.chat.completions.create(**asking("say hello"), timeout=20)

    assert answer.choices[0].message.content == "hello"


@pytest.mark.anyio
async def test_cancelling_asynchronous_requests_frees_their_row(mortal: Live) -> None:
    async with mortal.async_client() as client:
        stream = await client.chat.completions.create(**asking("endless"), stream=True)
        async for _ in stream:
            break
        await stream.close()
        waiting = asyncio.create_task(client.chat.completions.create(**asking("endless")))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
        waiting.cancel()
        answer = await client.chat.completions.create(**asking("say hello"), timeout=20)

    assert answer.choices[0].message.content == "hello"
