"""One request of a soak: sent, and read to its end or until its client is to leave.

Called by `soak.py`. Keeps the bytes as they came, also where they break off; a failure is part of
the reply and never raised. Must not know what a reply should be (`soak_check.py`).
"""

import asyncio
from contextlib import aclosing

import msgspec

from verger.bench.chat import PATH, Target
from verger.bench.client import post
from verger.bench.reader import ReadError
from verger.bench.soak_asks import Ask, Leave
from verger.bench.soak_check import Reply

MAX_REPLY_BYTES = 16 * 1024 * 1024


async def reply_to(target: Target, asked: Ask, limit_s: float) -> Reply:
    """Whatever has come within the time, or until the client left."""
    reply, leave = Reply(), asked.leave
    leaves_s = leave.after_s if leave and leave.after_events is None else limit_s
    timer = asyncio.timeout(min(leaves_s, limit_s))
    try:
        async with timer:
            await _read(target, asked, reply)
    except asyncio.IncompleteReadError:
        reply.failure = "cut off"
    except (OSError, ReadError, ValueError) as error:
        # A timeout is an OSError; it may be the connection's instead of ours.
        if not timer.expired():
            reply.failure = f"the connection failed: {error!r}"
        elif leaves_s < limit_s:
            reply.has_left = True
        else:
            reply.failure = f"not complete within {limit_s:.0f} s"
    return reply


async def _read(target: Target, asked: Ask, reply: Reply) -> None:
    body = msgspec.json.encode(asked.body)
    async with post(target.endpoint, PATH, body, target.key) as response:
        reply.status, reply.headers = response.status, dict(response.headers)
        async with aclosing(response.parts()) as parts:
            async for part in parts:
                reply.body += part
                if len(reply.body) > MAX_REPLY_BYTES:
                    raise ReadError(f"more than {MAX_REPLY_BYTES} bytes")
                if _is_time(asked.leave, reply):
                    reply.has_left = True
                    return
    reply.is_complete = True


def _is_time(leave: Leave | None, reply: Reply) -> bool:
    """Whether so many events have come; an answer that ended before is a whole one."""
    if leave is None or leave.after_events is None or b"[DONE]" in reply.body:
        return False
    return reply.body.count(b"\n\n") >= leave.after_events
