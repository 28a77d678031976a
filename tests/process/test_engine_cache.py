"""What a client sees of the prefix cache of a real engine process: how much of a prompt was found,
and that every answer stays the one it would have been."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.process.engines import FINAL, SCRIPT, WAIT_S, answer, ask, make_command, running
from verger.gateway.engine_client import EngineClient
from verger.messages import BACKGROUND, Finished, FinishReason, RowTokens, Stats, Submit

pytestmark = [pytest.mark.anyio, pytest.mark.process]

HISTORY = "What was said so far. " * 40
MIB = 1 << 20


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[EngineClient]:
    command = make_command(tmp_path, SCRIPT, "--prefill-chunk", "100")
    async with running(command) as client:
        await client.wait_ready(WAIT_S)
        yield client


async def assert_said(client: EngineClient, submit: Submit, word: str) -> Finished:
    text, finished = await answer(client, submit)
    assert text == f"{FINAL}You said {word}.<|return|>"
    assert finished.prompt_tokens == len(submit.prompt)
    return finished


async def prefill(client: EngineClient, submit: Submit) -> Finished:
    """Compute a prompt in the background; nothing is said."""
    async with client.prefill(replace(submit, max_tokens=0, priority=BACKGROUND)) as generation:
        events = [event async for event in generation]
    assert not any(isinstance(event, RowTokens) for event in events)
    assert isinstance(events[-1], Finished)
    return events[-1]


async def test_a_repeated_prompt_is_found_but_for_its_last_token(client: EngineClient) -> None:
    submit = ask(HISTORY + "say hello")
    assert (await assert_said(client, submit, "hello")).cached_tokens == 0
    async with client.generate(submit) as generation:
        async for _ in generation:
            # Known as soon as the request has a row.
            assert generation.cached_tokens == len(submit.prompt) - 1
    assert (await assert_said(client, submit, "hello")).cached_tokens == len(submit.prompt) - 1


async def test_the_next_turn_finds_prompt_and_answer(client: EngineClient) -> None:
    """All but what a history replaces: the answer's last token."""
    first = HISTORY + "say hello"
    await assert_said(client, ask(first), "hello")
    said = f"{FINAL}You said hello."
    finished = await assert_said(client, ask(f"{first}{said}<|end|>and so on"), "hello")
    assert finished.cached_tokens == len(ask(first + said).prompt)


async def test_prompts_that_part_share_what_lies_before(client: EngineClient) -> None:
    begin = len(ask(HISTORY).prompt)
    for word in ("one", "two", "three"):
        submit = replace(ask(f"{HISTORY}say {word}"), boundaries=[begin])
        finished = await assert_said(client, submit, word)
        assert finished.cached_tokens == (0 if word == "one" else begin)


async def test_another_tenant_finds_nothing(client: EngineClient) -> None:
    submit = ask(HISTORY + "say hello")
    await assert_said(client, submit, "hello")
    finished = await assert_said(client, replace(submit, cache_salt="lab"), "hello")
    assert finished.cached_tokens == 0


async def test_a_prompt_computed_in_the_background_is_found(client: EngineClient) -> None:
    history = ask(HISTORY)
    finished = await prefill(client, history)
    assert (finished.reason, finished.completion_tokens) == (FinishReason.LENGTH, 0)
    submit = ask(HISTORY + "say hello")
    assert (await assert_said(client, submit, "hello")).cached_tokens == len(history.prompt)
    assert (await prefill(client, history)).reason is FinishReason.LENGTH


async def test_a_look_up_tells_what_a_request_would_find(client: EngineClient) -> None:
    submit = ask(HISTORY + "say hello")
    for expected in (0, len(submit.prompt) - 1):
        hits = client.look_up(submit)
        await hits.wait(WAIT_S)
        assert hits.memory_tokens == hits.disk_tokens == expected
        await assert_said(client, submit, "hello")
    other = client.look_up(replace(submit, cache_salt="lab"))
    await other.wait(WAIT_S)
    assert other.memory_tokens == 0


async def test_a_client_that_gives_up_finds_what_was_computed(client: EngineClient) -> None:
    """The prompt is prefilled in 20 chunks of 0.05 s; the client leaves after a few."""
    submit = ask("long " * 400)
    async with client.generate(submit) as generation:
        async for event in generation:
            assert not isinstance(event, RowTokens | Finished)
            if event.prefilled_tokens >= 600:
                break
    text, finished = await answer(client, submit)
    assert text == f"{FINAL}done<|return|>"
    assert finished.cached_tokens >= 600


async def test_without_a_cache_every_prompt_is_computed(tmp_path: Path) -> None:
    async with running(make_command(tmp_path, SCRIPT, "--no-prefix-cache")) as client:
        await client.wait_ready(WAIT_S)
        for _ in range(2):
            submit = ask(HISTORY + "say hello")
            assert (await assert_said(client, submit, "hello")).cached_tokens == 0
        assert (await prefill(client, ask(HISTORY))).completion_tokens == 0


async def test_the_memory_for_kv_bounds_the_context(tmp_path: Path) -> None:
    """A position takes 1 KiB; the rings of the rows come first."""
    async with running(make_command(tmp_path, SCRIPT, "--kv-bytes", str(8 * MIB))) as client:
        ready = await client.wait_ready(WAIT_S)
        assert ready.context_tokens == 7 * 1024 + 512


async def test_answers_stay_right_while_memory_is_short(tmp_path: Path) -> None:
    """Rows lie in blocks of 3 or 4 MiB, and there is room for two: what is cached is evicted,
    requests wait, and nobody notices but by the time that it takes."""
    command = make_command(tmp_path, SCRIPT, "--kv-bytes", str(9 * MIB))
    async with running(command) as client:
        await client.wait_ready(WAIT_S)
        asked = [ask(f"{'blah ' * (150 + 45 * n)}say word{n}") for n in range(15)]
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                for n, submit in enumerate(asked):
                    group.create_task(assert_said(client, submit, f"word{n}"))
        stats = await idle_stats(client)
        assert stats.cache.evictions > 0
        assert stats.kv_bytes <= stats.cache.limit_bytes == 9 * MIB


async def idle_stats(client: EngineClient) -> Stats:
    """What the engine says of itself once it has nothing to do; not what it said in a pause."""
    client.stats = None
    while (stats := client.stats) is None or stats.running or stats.waiting:
        await assert_said(client, ask("say again"), "again")
    return stats


async def test_prefixes_on_disk_survive_the_process(tmp_path: Path) -> None:
    """A prefix that was used again is written; reading it is faster than 0.05 s a chunk."""
    flags = ["--cache-dir", str(tmp_path / "cache"), "--disk-bytes", str(64 * MIB)]
    flags += ["--disk-daily-bytes", str(64 * MIB), "--prefill-chunk", "100"]
    command = make_command(tmp_path, SCRIPT, *flags)
    submit = ask("long " * 200)
    async with running(command) as client:
        await client.wait_ready(WAIT_S)
        for _ in range(2):
            before, _ = await answer(client, submit)
        while client.stats is None or client.stats.cache.disk_files == 0:
            await answer(client, ask("say again"))
    async with running(command) as client:
        await client.wait_ready(WAIT_S)
        await answer(client, ask("another long prompt " * 20))
        after, finished = await answer(client, submit)
        assert after == before
        assert finished.cached_tokens >= 512
