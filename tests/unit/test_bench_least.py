"""The least that a perfect cache computes, on cases that can be counted by hand."""

from tests.harmony_text import byte_vocabulary, harmony_text
from verger.bench.chat import Answer
from verger.bench.least import Exchange, Least, PrefixTree, exchange_of, least_tokens
from verger.formats.conversation import Conversation, Message, Role, ToolCall

USER = Message(Role.USER, "call look {}")
CALL = Message(Role.ASSISTANT, reasoning="I look.", tool_calls=(ToolCall("call_1", "look", "{}"),))
RESULT = Message(Role.TOOL, "sunny", tool_call_id="call_1")


def exchange(
    sent_s: float, ended_s: float, prompt: list[int], generated: list[int] | None = None
) -> Exchange:
    return Exchange(sent_s, ended_s, prompt, prompt + (generated or []))


def answer(message: Message) -> Answer:
    return Answer(message, prompt_tokens=1, cached_tokens=0, sent_s=0.0, first_s=0.5, ended_s=1.0)


def text_after(conversation: Conversation, message: Message) -> str:
    """What the exchange holds beyond its prompt."""
    found = exchange_of(conversation, answer(message), byte_vocabulary())
    assert list(found.continued[: len(found.prompt)]) == list(found.prompt)
    return harmony_text(list(found.continued[len(found.prompt) :]), byte_vocabulary())


def test_a_tree_tells_how_many_positions_are_new() -> None:
    tree = PrefixTree()
    assert [tree.add(ids) for ids in ([1, 2, 3], [1, 2, 4, 5], [1, 2, 3], [2])] == [3, 2, 0, 1]


def test_a_shared_beginning_is_computed_once() -> None:
    both = [exchange(0, 5, [1, 2, 3, 4]), exchange(1, 6, [1, 2, 3, 9, 9])]
    assert least_tokens(both) == Least(tokens=4 + 2, positions=4 + 2)


def test_what_was_generated_is_there_when_the_answer_has_ended() -> None:
    first = exchange(0, 1, [1, 2], [7, 8])
    assert least_tokens([first, exchange(2, 3, [1, 2, 7, 8, 3])]).tokens == 2 + 1
    assert least_tokens([first, exchange(0.5, 3, [1, 2, 7, 8, 3])]).tokens == 2 + 3


def test_requests_count_in_the_order_in_which_they_were_sent() -> None:
    """The second of two equal prompts needs one token, whichever is listed first."""
    prompts = [exchange(1, 9, [1, 2, 3]), exchange(0, 8, [1, 2, 3])]
    assert least_tokens(prompts) == least_tokens(prompts[::-1]) == Least(3 + 1, 3)


def test_a_known_prompt_still_costs_its_last_token() -> None:
    assert least_tokens([exchange(0, 1, [1, 2], [3]), exchange(2, 3, [1, 2, 3])]) == Least(2 + 1, 3)


def test_a_call_continues_the_prompt_with_its_reasoning() -> None:
    assert text_after(Conversation((USER,)), CALL) == (
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>"
        "commentary to=functions.look <|constrain|>json<|message|>{}<|call|>"
    )


def test_a_final_answers_last_token_is_another_in_history() -> None:
    said = Message(Role.ASSISTANT, "It is sunny.")
    assert text_after(Conversation((USER, CALL, RESULT)), said) == ""
    assert text_after(Conversation((USER,)), said) == "<|channel|>final<|message|>It is sunny."


def test_a_final_answer_behind_reasoning_is_computed_again() -> None:
    """History has the answer without the reasoning that it was generated behind."""
    said = Message(Role.ASSISTANT, "It is sunny.", reasoning="They ask.")
    assert text_after(Conversation((USER,)), said) == ""


def test_a_tool_loop_costs_only_what_is_added() -> None:
    """By hand: all of the first prompt, then the result and the header of the next answer."""
    vocabulary = byte_vocabulary()
    first = Conversation((USER,))
    second = Conversation((USER, CALL, RESULT))
    exchanges = [
        exchange_of(first, answer(CALL), vocabulary),
        Exchange(2, 3, exchange_of(second, answer(CALL), vocabulary).prompt, []),
    ]
    added = (
        "<|start|>functions.look to=assistant<|channel|>commentary<|message|>sunny<|end|>"
        "<|start|>assistant"
    )
    assert harmony_text(list(exchanges[1].prompt), vocabulary).endswith(added)
    specials = 5
    texts = len("functions.look to=assistantcommentarysunnyassistant")
    assert least_tokens(exchanges).tokens == len(exchanges[0].prompt) + specials + texts
