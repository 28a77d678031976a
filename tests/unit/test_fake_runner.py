"""The scripted runner: what each line of a script does."""

from pathlib import Path

import pytest

from tests.fakes import byte_tokenizer, write_model_folder
from verger.engine.fake import HANG_S, NO_REPLY, FakeRunner, Reply, Script, ScriptedFailure, Start
from verger.engine.steps import (
    Close,
    Cut,
    FreeSpan,
    FreeWindow,
    Import,
    Kept,
    Open,
    Place,
    Plan,
    Prefill,
    Sampled,
    Stored,
)
from verger.errors import ConfigError, ModelFolderError
from verger.messages import Logprob, Submit

TOKENIZER = byte_tokenizer()


class Died(BaseException):
    """Stands for the end of the process."""


def make_runner(*replies: Reply, slept_s: list[float] | None = None) -> FakeRunner:
    def die() -> None:
        raise Died

    sleep = (slept_s if slept_s is not None else []).append
    return FakeRunner(Script(reply=list(replies)), TOKENIZER, sleep=sleep, die=die)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text).ids)


def submit(request_id: int, prompt: str, max_tokens: int = 9) -> Submit:
    return Submit(request_id, encode(prompt), max_tokens, stop_ids=[])


def place(row: int = 0) -> Place:
    return Place(block_id=0, row=row, block_rows=16, capacity=256)


def ask(runner: FakeRunner, prompt: str, tokens: int, logprobs: int | None = None) -> list[Sampled]:
    """Run one request for a number of tokens and take its row away."""
    ids = encode(prompt)
    runner.apply(Open(Submit(1, ids, tokens, stop_ids=[], logprobs=logprobs), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, len(ids)),)))
    sampled = runner.collect()
    for _ in range(tokens - 1):
        runner.launch(Plan(decodes=(1,)))
        sampled += runner.collect()
    runner.apply(Close(1))
    return sampled


def text(sampled: list[Sampled]) -> str:
    decoded: str = TOKENIZER.decode([token.id for token in sampled], skip_special_tokens=False)
    return decoded


def test_a_reply_is_said_token_by_token_and_then_returns() -> None:
    runner = make_runner(Reply(text="<|channel|>final<|message|>é!"))
    said = ask(runner, "hello", tokens=12)
    assert said[0].id == TOKENIZER.token_to_id("<|channel|>")
    assert text(said) == "<|channel|>final<|message|>é!" + "<|return|>" * 2


def test_a_reply_may_end_with_its_own_stop() -> None:
    runner = make_runner(Reply(text="x<|call|>"))
    assert text(ask(runner, "hello", tokens=3)) == "x<|call|><|return|>"


def test_the_first_reply_whose_pattern_is_found_speaks() -> None:
    runner = make_runner(
        Reply(match="<.user.>two$", text="B"), Reply(match="t[wo]{2}", text="C"), Reply(text="D")
    )
    assert text(ask(runner, "two", tokens=1)) == "C"
    assert text(ask(runner, "three", tokens=1)) == "D"


def test_special_tokens_stand_in_the_prompt_that_patterns_see() -> None:
    runner = make_runner(Reply(match=r"<\|start\|>user<\|message\|>hi", text="A"), Reply(text="B"))
    assert text(ask(runner, "<|start|>user<|message|>hi", tokens=1)) == "A"
    assert text(ask(runner, "user hi", tokens=1)) == "B"


def test_groups_of_the_pattern_fill_the_reply_and_json_stays() -> None:
    runner = make_runner(Reply(match=r"say (\w+) to (\w+)", text='{2}: {1} {"a": {}}'))
    assert text(ask(runner, "say hi to Bob", tokens=16)) == 'Bob: hi {"a": {}}'[:16]


def test_a_prompt_without_a_reply_gets_a_clear_one() -> None:
    runner = make_runner(Reply(match="never", text="A"))
    assert text(ask(runner, "hello", tokens=200)).startswith(NO_REPLY)


def test_a_resumed_request_goes_on_where_it_stopped() -> None:
    runner = make_runner(Reply(match="hello$", text="abcdef"))
    prompt = encode("hello" + "abc")
    runner.apply(Open(Submit(1, prompt, 9, stop_ids=[], resumed_tokens=3), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, len(prompt)),)))
    runner.launch(Plan(decodes=(1,)))
    assert text(runner.collect() + runner.collect()) == "de"


def test_a_step_takes_as_long_as_its_slowest_row() -> None:
    slept_s: list[float] = []
    runner = make_runner(
        Reply(match="slow", text="A", step_s=0.25, prefill_s=2.0),
        Reply(text="B", step_s=0.125, prefill_s=0.5),
        slept_s=slept_s,
    )
    runner.apply(Open(submit(1, "slow"), place(0)))
    runner.apply(Open(submit(2, "fast"), place(1)))
    runner.launch(Plan(prefills=(Prefill(1, 0, 2), Prefill(2, 0, 4))))
    runner.collect()
    runner.launch(Plan(prefills=(Prefill(1, 2, 4),), decodes=(2,)))
    runner.collect()
    runner.launch(Plan(decodes=(1, 2)))
    runner.collect()
    assert slept_s == [2.0, 2.0, 0.25]


@pytest.mark.parametrize("position", [0, 2])
def test_faults_strike_at_their_token(position: int) -> None:
    with pytest.raises(ScriptedFailure, match=f"token {position}"):
        ask(make_runner(Reply(text="abc", fail_at=position)), "x", tokens=position + 1)
    with pytest.raises(Died):
        ask(make_runner(Reply(text="abc", die_at=position)), "x", tokens=position + 1)
    slept_s: list[float] = []
    ask(make_runner(Reply(text="abc", hang_at=position), slept_s=slept_s), "x", position + 1)
    assert slept_s == [HANG_S]


def test_a_fault_does_not_strike_before_its_token() -> None:
    reply = Reply(text="abc", fail_at=3, die_at=3, hang_at=3)
    assert text(ask(make_runner(reply), "x", tokens=3)) == "abc"


@pytest.mark.parametrize(("top", "expected"), [(0, 0), (3, 3)])
def test_logprobs_are_made_up_but_consistent(top: int, expected: int) -> None:
    first, second = ask(make_runner(Reply(text="ab")), "x", tokens=2, logprobs=top)
    assert first.logprob is not None
    assert second.logprob is not None
    assert (first.logprob.logprob, second.logprob.logprob) == (-0.125, -0.25)
    assert len(first.logprob.top_ids) == len(first.logprob.top_logprobs) == expected
    assert first.logprob.top_ids[:1] == [first.id][:top]


def test_no_logprobs_unless_asked() -> None:
    assert ask(make_runner(Reply(text="a")), "x", tokens=1)[0].logprob is None
    assert ask(make_runner(Reply(text="a")), "x", 1, logprobs=0)[0].logprob == Logprob(-0.125)


def test_memory_follows_the_rows_and_what_is_kept_of_them() -> None:
    runner = make_runner(Reply(text="abc"))
    ring_bytes = runner.kv.ring_bytes
    assert runner.memory().kv_bytes == ring_bytes > 0
    runner.apply(Open(submit(1, "hello"), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, 5, cuts=(Cut(1, 4),)),)))
    block_bytes = 16 * 256 * runner.kv.token_bytes
    window_bytes = runner.kv.window_bytes(4)
    peak_bytes = ring_bytes + block_bytes + window_bytes
    assert runner.memory().kv_bytes == runner.memory().peak_bytes == peak_bytes
    runner.apply(Close(1, kept=(Kept(1, 0, 4),)))
    assert runner.memory().kv_bytes == ring_bytes + 4 * runner.kv.token_bytes + window_bytes
    runner.apply(FreeSpan(1))
    runner.apply(FreeWindow(1))
    memory = runner.memory()
    assert (memory.kv_bytes, memory.active_bytes) == (ring_bytes, ring_bytes)
    assert memory.peak_bytes == peak_bytes


def test_the_peak_is_noted_though_nobody_asked_at_the_time() -> None:
    runner = make_runner(Reply(text="abc"))
    runner.apply(Open(submit(1, "hello"), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, 5),)))
    runner.apply(Close(1))
    assert runner.memory().peak_bytes > runner.memory().kv_bytes


def test_a_kept_prefix_is_restored_and_the_answer_stays_the_same() -> None:
    runner = make_runner(Reply(text="abc"))
    runner.apply(Open(submit(1, "hello"), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, 5),)))
    runner.launch(Plan(decodes=(1,)))
    said = "hello" + text(runner.collect())
    runner.apply(Close(1, kept=(Kept(1, 0, 6),), window=Cut(1, 6)))
    runner.collect()
    runner.apply(Open(submit(2, said + "?"), place(), (Stored(1, 0, 6),), window_id=1))
    runner.launch(Plan(prefills=(Prefill(2, 6, 7),)))
    assert text(runner.collect()) == "a"


def test_what_a_decode_fed_is_part_of_the_prefix() -> None:
    """The row said "a" behind its prompt, so its KV does not fit behind another letter."""
    runner = make_runner(Reply(text="abc"))
    runner.apply(Open(submit(1, "hello"), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, 5),)))
    runner.launch(Plan(decodes=(1,)))
    runner.apply(Close(1, kept=(Kept(1, 0, 6),), window=Cut(1, 6)))
    with pytest.raises(AssertionError, match="not its own at 5"):
        runner.apply(Open(submit(2, "hellob?"), place(), (Stored(1, 0, 6),), window_id=1))


def test_what_is_exported_has_a_devices_size_and_fits_another_runner() -> None:
    first, second = make_runner(Reply(text="abc")), make_runner(Reply(text="abc"))
    assert first.fingerprint == second.fingerprint
    first.apply(Open(submit(1, "hello"), place()))
    first.launch(Plan(prefills=(Prefill(1, 0, 5, cuts=(Cut(1, 5),)),)))
    first.apply(Close(1, kept=(Kept(1, 0, 5),)))
    payload = first.export(Stored(1, 0, 5), 1)
    assert len(payload) == 5 * first.kv.token_bytes + first.kv.window_bytes(5)
    second.apply(Import(payload, 5, 5, 0, 5, span_id=3, window_id=4))
    second.apply(Open(submit(2, "hello?"), place(), (Stored(3, 0, 5),), window_id=4))


def test_a_request_for_no_tokens_computes_its_prompt_and_says_nothing() -> None:
    runner = make_runner(Reply(text="abc", prefill_s=0.5))
    runner.apply(Open(submit(1, "hello", max_tokens=0), place(0)))
    runner.apply(Open(submit(2, "hi"), place(1)))
    runner.launch(Plan(prefills=(Prefill(1, 0, 5), Prefill(2, 0, 2))))
    assert [token.request_id for token in runner.collect()] == [2]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(prefills=(Prefill(1, 1, 2),)),
        Plan(prefills=(Prefill(1, 0, 6),)),
        Plan(prefills=(Prefill(1, 0, 0),)),
        Plan(prefills=(Prefill(1, 0, 2), Prefill(1, 2, 3))),
        Plan(prefills=(Prefill(1, 0, 5, forks=(1,)),)),
        Plan(prefills=(Prefill(1, 0, 5),), decodes=(1,)),
        Plan(decodes=(1,)),
        Plan(decodes=(2,)),
    ],
    ids="empty gap beyond nothing twice itself both unfilled unknown".split(),
)
def test_a_plan_against_the_contract_is_a_defect(plan: Plan) -> None:
    runner = make_runner(Reply(text="abc"))
    runner.apply(Open(submit(1, "hello"), place()))
    with pytest.raises(AssertionError):
        runner.launch(plan)


def test_no_row_grows_beyond_the_context() -> None:
    script = Script(context_tokens=7)
    runner = FakeRunner(script, TOKENIZER)
    runner.apply(Open(submit(1, "hello"), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, 5),)))
    runner.launch(Plan(decodes=(1,)))
    assert len(runner.collect() + runner.collect()) == 2
    with pytest.raises(AssertionError):
        runner.launch(Plan(decodes=(1,)))


def test_no_third_step_is_launched_and_none_is_collected_twice() -> None:
    runner = make_runner(Reply(text="abc"))
    runner.apply(Open(submit(1, "hello"), place()))
    for position in range(2):
        runner.launch(Plan(prefills=(Prefill(1, position, position + 1),)))
    with pytest.raises(AssertionError):
        runner.launch(Plan(prefills=(Prefill(1, 2, 3),)))
    assert runner.collect() == runner.collect() == []
    with pytest.raises(AssertionError):
        runner.collect()


def test_there_are_as_many_rows_as_asked_for() -> None:
    runner = FakeRunner(Script(), TOKENIZER, max_rows=1)
    assert runner.kv.max_rows == 1
    runner.apply(Open(submit(1, "hello"), place(0)))
    with pytest.raises(AssertionError):
        runner.apply(Open(submit(2, "hello"), place(1)))


def test_a_row_may_close_while_a_launched_step_has_it() -> None:
    runner = make_runner(Reply(text="abc"))
    runner.apply(Open(submit(1, "x"), place()))
    runner.launch(Plan(prefills=(Prefill(1, 0, 1),)))
    runner.apply(Close(1))
    assert text(runner.collect()) == "a"


def test_loading_may_fail_die_or_hang() -> None:
    slept_s: list[float] = []

    def die() -> None:
        raise Died

    def load(start: Start) -> FakeRunner:
        return FakeRunner(Script(start=start), TOKENIZER, sleep=slept_s.append, die=die)

    with pytest.raises(ScriptedFailure):
        load(Start.FAIL)
    with pytest.raises(Died):
        load(Start.DIE)
    load(Start.HANG)
    assert slept_s == [HANG_S]


def test_a_script_is_read_from_toml(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text(
        "context_tokens = 500\nfree_bytes = 9\n[[reply]]\nmatch = 'a'\ntext = '<|channel|>x'\n"
    )
    runner = FakeRunner.load(script, write_model_folder(tmp_path / "model"), max_rows=3)
    assert (runner.context_tokens, runner.device) == (500, "fake")
    assert (runner.kv.max_rows, runner.free_bytes) == (3, 9)
    assert runner.vocabulary_size == 265
    assert text(ask(runner, "a", tokens=2)) == "<|channel|>x"


@pytest.mark.parametrize("content", ["[[reply]]\nwords = 'a'\n", "= broken", None])
def test_an_unreadable_script_is_named(tmp_path: Path, content: str | None) -> None:
    script = tmp_path / "script.toml"
    if content is not None:
        script.write_text(content)
    with pytest.raises(ConfigError, match=r"script\.toml"):
        FakeRunner.load(script, write_model_folder(tmp_path / "model"))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text("")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json"):
        FakeRunner.load(script, tmp_path)
