"""A client and a real engine: whatever befalls the engine, every request gets an answer."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.process.engines import (
    FINAL,
    SCRIPT,
    TOKENIZER,
    WAIT_S,
    answer,
    ask,
    make_command,
    running,
)
from verger.errors import ContextLengthExceeded, EngineUnavailable
from verger.gateway.engine_client import EngineClient, EngineState, Generation, RestartLimits
from verger.messages import (
    PROTOCOL_VERSION,
    Finished,
    FinishReason,
    Hello,
    Logprob,
    Progress,
    RowTokens,
)

pytestmark = [pytest.mark.anyio, pytest.mark.process]

IMPATIENT = RestartLimits(silence_s=3.0, load_s=0.5, first_delay_s=0.01)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[EngineClient]:
    command = make_command(tmp_path, SCRIPT, "--max-rows", "16", "--prefill-chunk", "100")
    async with running(command) as client:
        await client.wait_ready(WAIT_S)
        yield client


@pytest.fixture
async def narrow_client(tmp_path: Path) -> AsyncIterator[EngineClient]:
    """An engine with a single row: whoever gets it proves that it was free."""
    command = make_command(tmp_path, SCRIPT, "--max-rows", "1", "--prefill-chunk", "10")
    async with running(command) as client:
        await client.wait_ready(WAIT_S)
        yield client


async def first_tokens(generation: Generation) -> RowTokens:
    async for event in generation:
        if isinstance(event, RowTokens):
            return event
    raise AssertionError("no tokens came")


async def read_on(generation: Generation) -> None:
    async for _ in generation:
        pass


async def assert_serves(client: EngineClient) -> None:
    await client.wait_ready(WAIT_S)
    text, _ = await answer(client, ask("say again"))
    assert text == f"{FINAL}You said again.<|return|>"


async def test_a_request_is_answered(client: EngineClient) -> None:
    text, finished = await answer(client, ask("say hello"))
    assert text == f"{FINAL}You said hello.<|return|>"
    assert finished.reason is FinishReason.STOP
    assert finished.prompt_tokens == len("say hello")
    assert finished.completion_tokens == len(TOKENIZER.encode(text).ids)


async def test_ready_tells_what_was_loaded(client: EngineClient) -> None:
    ready = await client.wait_ready(WAIT_S)
    assert (ready.version, ready.model_id, ready.device) == (PROTOCOL_VERSION, "fake", "fake")
    assert (ready.max_rows, ready.context_tokens) == (16, 20_000)
    assert ready.vocabulary_size == TOKENIZER.get_vocab_size()


async def test_more_requests_than_rows_each_get_their_own_answer(client: EngineClient) -> None:
    requests = [answer(client, ask(f"say number{number}")) for number in range(40)]
    for number, (text, _) in enumerate(await asyncio.gather(*requests)):
        assert text == f"{FINAL}You said number{number}.<|return|>"


async def test_length_and_logprobs_travel(client: EngineClient) -> None:
    async with client.generate(ask("say hello", max_tokens=2, logprobs=1)) as generation:
        events = [event async for event in generation]
    logprobs = [row.logprobs for row in events if isinstance(row, RowTokens)]
    assert [value.logprob for row in logprobs for value in row] == [-0.125, -0.25]
    assert all(isinstance(value, Logprob) and len(value.top_ids) == 1 for value in logprobs[0])
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH


async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(
    client: EngineClient,
) -> None:
    with pytest.raises(ContextLengthExceeded, match="20000 tokens.*resulted in 20000"):
        await answer(client, ask("x" * 20_000))
    await assert_serves(client)


async def test_kill_in_mid_stream_is_an_error_and_the_next_request_works(
    client: EngineClient,
) -> None:
    pid = client.pid
    assert pid is not None
    async with client.generate(ask("slow")) as generation:
        await first_tokens(generation)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="restarted"):
            await read_on(generation)
        assert client.state is EngineState.RESTARTING
    await assert_serves(client)
    assert client.failure == "killed by SIGKILL"
    assert client.pid != pid


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("fail", "ScriptedFailure: the script fails at token 3"), ("die", "killed by SIGKILL")],
)
async def test_whatever_ends_the_engine_the_next_request_works(
    client: EngineClient, prompt: str, reason: str
) -> None:
    with pytest.raises(EngineUnavailable):
        await answer(client, ask(prompt))
    await assert_serves(client)
    assert client.failure == reason


async def test_a_hanging_engine_is_killed_and_the_next_request_works(tmp_path: Path) -> None:
    limits = RestartLimits(silence_s=3.0, first_delay_s=0.01)
    async with running(make_command(tmp_path), limits=limits) as client:
        await client.wait_ready(WAIT_S)
        with pytest.raises(EngineUnavailable, match="restarted"):
            await answer(client, ask("hang"))
        await assert_serves(client)
        assert client.failure == "it was silent for 3 s and was killed"


async def test_cancel_in_mid_stream_frees_the_row(narrow_client: EngineClient) -> None:
    async with narrow_client.generate(ask("slow")) as generation:
        await first_tokens(generation)
    await assert_serves(narrow_client)


async def test_cancel_during_prefill_frees_the_row(narrow_client: EngineClient) -> None:
    """Prefilling this prompt to its end would take over a minute."""
    async with narrow_client.generate(ask("long" * 4_000)) as generation:
        assert isinstance(await anext(generation), Progress)
    await assert_serves(narrow_client)


async def test_cancel_while_waiting_leaves_the_queue(narrow_client: EngineClient) -> None:
    async with narrow_client.generate(ask("slow")) as first:
        await first_tokens(first)
        async with narrow_client.generate(ask("slow")):
            pass
    await assert_serves(narrow_client)


async def test_stop_lets_a_stream_finish(client: EngineClient) -> None:
    async with client.generate(ask("slow", max_tokens=50)) as generation:
        await first_tokens(generation)
        stopping = asyncio.create_task(client.stop(WAIT_S))
        events = [event async for event in generation]
        assert isinstance(events[-1], Finished)
        assert events[-1].completion_tokens == 50
        await stopping


async def test_stop_does_not_wait_for_ever(client: EngineClient) -> None:
    async with client.generate(ask("slow")) as generation:
        await first_tokens(generation)
        await client.stop(drain_s=0.0)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await read_on(generation)


@pytest.mark.parametrize("start", ["fail", "die", "hang"])
async def test_an_engine_that_never_starts_is_left_alone(tmp_path: Path, start: str) -> None:
    command = make_command(tmp_path, f'start = "{start}"')
    async with running(command, limits=IMPATIENT) as client:
        with pytest.raises(EngineUnavailable, match="safe mode"):
            await client.wait_ready(WAIT_S)
        assert client.state is EngineState.SAFE_MODE


async def test_a_folder_without_a_model_is_a_permanent_failure(tmp_path: Path) -> None:
    command = make_command(tmp_path)
    (tmp_path / "model" / "tokenizer.json").unlink()
    async with running(command) as client:
        with pytest.raises(EngineUnavailable, match=r"tokenizer\.json is missing"):
            await client.wait_ready(WAIT_S)
        assert client.state is EngineState.FAILED


async def test_an_older_gateway_is_told_to_restart(tmp_path: Path) -> None:
    async with running(make_command(tmp_path), Hello(PROTOCOL_VERSION + 1, 5)) as client:
        with pytest.raises(EngineUnavailable, match="different releases"):
            await client.wait_ready(WAIT_S)


async def test_a_missing_engine_extra_is_a_permanent_failure(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['mlx'] = None; "
        "from verger.engine.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", code, "--model", str(tmp_path), "--model-id", "none"]
    async with running(command) as client:
        with pytest.raises(EngineUnavailable, match=r"pip install 'verger\[engine\]'"):
            await client.wait_ready(WAIT_S)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("sys.exit(1)", id="exits"),
        pytest.param("time.sleep(1000)", id="hangs"),
    ],
)
async def test_half_a_frame_from_an_engine_is_its_death(then: str) -> None:
    code = f"import os, sys, time; os.write(int(sys.argv[2]), b'\\x20\\0\\0\\0half'); {then}"
    async with running([sys.executable, "-c", code], limits=IMPATIENT) as client:
        with pytest.raises(EngineUnavailable, match="safe mode"):
            await client.wait_ready(WAIT_S)
