"""Token ids of one generation → events: reasoning, content and tool calls, as they come.

Called by `api/` for every step of every stream, so it must be cheap; it never raises, whatever the
ids. Pure: must not know a wire body or one particular vocabulary. gpt-oss breaks its own format in
some twenty known ways (`events.Repair` names them): each is repaired and counted.

    state    on                              goes on with
    HEADER   <|message|>                     BODY
    BODY     <|end|>                         GAP
    BODY     <|start|>, <|channel|>          HEADER  (the end is implied)
    GAP      <|start|>                       HEADER
    GAP      <|channel|>, <|message|>        HEADER, BODY  (the start is implied)
    any      <|return|>, <|call|>, <|endoftext|>, or a header that speaks for another    DONE
"""

from collections import Counter
from collections.abc import Collection, Sequence
from enum import Enum

from verger.formats.harmony.answer_writer import AnswerWriter, Kind
from verger.formats.harmony.events import Event, Finish, Outcome, Repair
from verger.formats.harmony.header import Channel, Header, Segment, read_header
from verger.formats.specials import STOPS, Special
from verger.formats.vocabulary import Vocabulary
from verger.messages import FinishReason

MAX_HEADER_TOKENS = 64

_NO_TOOL = ("", "assistant", "all", "user")
"""Recipients that call nothing."""

_KINDS = {
    Channel.ANALYSIS: Kind.REASONING,
    Channel.COMMENTARY: Kind.PREAMBLE,
    Channel.FINAL: Kind.FINAL,
    None: Kind.FINAL,
}
_SPOKEN = (Channel.ANALYSIS, Channel.FINAL)
_BODY_PADDING = b" \t\r\n:"


class _State(Enum):
    HEADER = "header"
    BODY = "body"
    GAP = "gap"
    DONE = "done"


class HarmonyParser:
    """Parses what follows a prompt that ends with `<|start|>assistant`."""

    def __init__(self, vocabulary: Vocabulary, tool_names: Collection[str] = ()) -> None:
        self._vocabulary = vocabulary
        self._specials = {vocabulary.special(special.value): special for special in Special}
        self._repairs: Counter[Repair] = Counter()
        self._writer = AnswerWriter(tool_names, self._repairs)
        self._state = _State.HEADER
        self._segments = [Segment(None, 0)]
        self._header_tokens = 0
        self._position = 0

    @property
    def is_done(self) -> bool:
        """Nothing that comes can matter: a caller may cancel what still runs."""
        return self._state is _State.DONE

    def feed(self, ids: Sequence[int]) -> list[Event]:
        """The events of the next ids; neighbouring text of one message is one event."""
        for id in ids:
            if self._state is _State.DONE:
                break
            special = self._specials.get(id)
            if special is not None:
                self._take_special(special)
            elif self._state is _State.BODY:
                self._writer.append(self._vocabulary.token_bytes(id), self._position)
            else:
                self._segments[-1].append(self._vocabulary.token_bytes(id))
                self._count_header_token()
            self._position += 1
        self._writer.flush()
        return self._writer.take_events()

    def close(self, reason: FinishReason) -> Outcome:
        """The engine has finished; a message still open then was cut off."""
        is_cut = self._state is not _State.DONE
        if is_cut:
            self._cut_off()
        elif not self._writer.has_answer:
            self._repairs[Repair.NO_FINAL] += 1
        finish = Finish.TOOL_CALLS if self._writer.completed_calls else Finish.STOP
        if is_cut and reason is FinishReason.LENGTH:
            finish = Finish.LENGTH
        events = self._writer.take_events()
        return Outcome(finish, events, self._writer.reasoning_tokens, self._repairs)

    def _take_special(self, special: Special) -> None:
        if self._state is _State.BODY:
            self._take_special_in_body(special)
        elif special is Special.MESSAGE:
            self._imply_start()
            self._open(read_header(self._segments, is_complete=True))
        elif special in (Special.CHANNEL, Special.CONSTRAIN):
            self._imply_start()
            self._segments.append(Segment(special, self._position + 1))
            self._count_header_token()
        else:
            self._end_without_body(is_over=special in STOPS)
            self._go_on_after(special)

    def _take_special_in_body(self, special: Special) -> None:
        if special in (Special.MESSAGE, Special.CONSTRAIN):
            self._repairs[Repair.STRAY_SPECIAL] += 1
            return
        if special in (Special.START, Special.CHANNEL):
            self._repairs[Repair.MISSING_END] += 1
        elif (special is Special.CALL) is not self._writer.is_call:
            self._repairs[Repair.WRONG_TERMINATOR] += 1
        self._writer.close(is_whole=True)
        self._go_on_after(special)
        if special is Special.CHANNEL:
            self._segments.append(Segment(special, self._position + 1))

    def _go_on_after(self, special: Special) -> None:
        """Leave a message that `special` has ended, or begin the one that it starts."""
        if special in STOPS:
            self._state = _State.DONE
        if self._state is _State.DONE:
            return
        self._state = _State.GAP if special is Special.END else _State.HEADER
        self._segments = [Segment(Special.START, self._position + 1)]
        self._header_tokens = 0

    def _imply_start(self) -> None:
        """A header goes on in a gap: the gap's text was its beginning, if it reads like one."""
        if self._state is not _State.GAP:
            return
        self._repairs[Repair.MISSING_START] += 1
        beginning = read_header(self._segments, is_complete=True)
        if beginning.author and not beginning.is_foreign:
            self._repairs[Repair.STRAY_TEXT] += 1
            self._segments = [Segment(Special.START, self._position)]
        self._state = _State.HEADER
        self._header_tokens = 0

    def _count_header_token(self) -> None:
        """A header that does not end is taken for a body; in a gap, only if nothing was said."""
        self._header_tokens += 1
        if self._header_tokens < MAX_HEADER_TOKENS:
            return
        if self._state is _State.GAP and self._writer.has_answer:
            self._repairs[Repair.STRAY_TEXT] += 1
            self._go_on_after(Special.END)
            return
        self._repairs[Repair.RUNAWAY_HEADER] += 1
        self._open_without_message()

    def _open(self, header: Header) -> None:
        self._repairs.update(header.repairs)
        if header.is_foreign:
            self._repairs[Repair.FOREIGN_AUTHOR] += 1
            self._state = _State.DONE
            return
        self._state = _State.BODY
        if header.recipient in _NO_TOOL:
            self._writer.open(_KINDS[header.channel])
        else:
            self._open_call(header)

    def _open_call(self, header: Header) -> None:
        """Whom a message is addressed to decides, neither its channel nor how it ends."""
        name = self._writer.find_tool(header.recipient)
        if name is not None:
            if header.recipient != f"functions.{name}":
                self._repairs[Repair.INEXACT_TOOL] += 1
            if header.channel is Channel.ANALYSIS:
                self._repairs[Repair.CALL_ON_ANALYSIS] += 1
            self._writer.open(Kind.CALL, name)
        elif header.recipient == "functions" and self._writer.has_tools:
            self._writer.open(Kind.WRAPPED_CALL)
        else:
            self._repairs[Repair.UNDECLARED_TOOL] += 1
            self._writer.open(Kind.FINAL)

    def _open_without_message(self) -> None:
        """Open what has no <|message|>: the body is the end of the header, or all that was said."""
        header = read_header(self._segments, is_complete=False)
        is_bare = len(self._segments) == 1 and not header.recipient
        self._open(header)
        last = self._segments[-1]
        offset = header.body_offset
        if self._writer.is_call:
            offset += len(last.text[offset:].partition(b"{")[0])
        else:
            offset += len(last.text[offset:]) - len(last.text[offset:].lstrip(_BODY_PADDING))
        if offset < len(last.text) and self._state is _State.BODY:
            self._repairs[Repair.BARE_TEXT if is_bare else Repair.BODY_IN_HEADER] += 1
            for token, position in last.tokens_from(offset):
                self._writer.append(token, position)

    def _end_without_body(self, is_over: bool) -> None:
        """A header ends before its <|message|>, or a gap; a gap's text is lost if more was said."""
        if self._state is _State.HEADER or (is_over and not self._writer.has_answer):
            self._open_without_message()
            self._writer.close(is_whole=True)
        elif self._segments[0].text.strip():
            self._repairs[Repair.STRAY_TEXT] += 1

    def _cut_off(self) -> None:
        """The last message is incomplete: half a call stays half, half a call's header is lost."""
        if self._state is _State.BODY:
            if self._writer.is_call:
                self._repairs[Repair.TRUNCATED] += 1
            self._writer.close(is_whole=False)
            return
        header = read_header(self._segments, is_complete=False)
        is_text = self._state is _State.GAP or self._segments[-1].opener is None
        if not header.recipient and (is_text or header.channel in _SPOKEN):
            self._end_without_body(is_over=True)
        else:
            self._repairs[Repair.TRUNCATED] += 1
