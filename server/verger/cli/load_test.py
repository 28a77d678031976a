"""Is a model's folder one that the engine loads and computes with? One real start, one token.

Used by `verger pull`. The engine is a process of its own, as when serving: what it cannot survive
ends it, and not the command.
"""

import asyncio
from pathlib import Path

from verger.errors import DownloadError, ReplyError
from verger.formats.specials import Special
from verger.formats.vocabulary import Vocabulary
from verger.gateway.engine_client import EngineClient
from verger.gateway.server import engine_command
from verger.gateway.settings import ServerSettings
from verger.messages import PROTOCOL_VERSION, Finished, Hello, Submit

LOAD_LIMIT_S = 900.0
TOKEN_LIMIT_S = 120.0


def load_once(model_id: str, folder: Path) -> str:
    """Load it, have it compute a token, and say how long that took; raises DownloadError."""
    try:
        return asyncio.run(_load(model_id, folder))
    except (ReplyError, TimeoutError) as error:
        raise DownloadError(
            f"all files are in {folder} and as the hub describes them, but {model_id} cannot be "
            f"used here: {error or f'no token came within {TOKEN_LIMIT_S:.0f} s'}"
        ) from error


async def _load(model_id: str, folder: Path) -> str:
    settings = ServerSettings(
        model_id, folder, context_tokens=1, max_rows=1, has_prefix_cache=False
    )
    vocabulary = Vocabulary.from_file_bytes((folder / "tokenizer.json").read_bytes())
    hello = Hello(PROTOCOL_VERSION, vocabulary.special(Special.MESSAGE.value))
    engine = EngineClient(engine_command(settings), hello)
    await engine.start()
    try:
        ready = await engine.wait_ready(LOAD_LIMIT_S)
        async with asyncio.timeout(TOKEN_LIMIT_S):
            async with engine.generate(Submit(0, [hello.message_id], 1, stop_ids=[])) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        break
    finally:
        await engine.stop(drain_s=0.0)
    context = f"{ready.context_tokens:,} tokens of context"
    return f"loaded in {ready.load_s:.1f} s on {ready.device}; {context}"
