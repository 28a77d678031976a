"""The loop that Verger is compared with: mlx-lm's own `BatchGenerator`, and nothing around it.

Run by `verger bench overhead` as `python -P -m verger.engine.device.bare_loop FOLDER`: one line of
JSON in and one out per round (`timings.py`). Loads the model as the runner does, so both compute
with the same weights in the same precision. Leans on mlx-lm 0.32.2: `generate.BatchGenerator`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from mlx_lm.generate import BatchGenerator

from verger.engine.device.model import load
from verger.timings import BareRound, StreamTimes, Timings


def main() -> None:
    """Answer rounds until standard input ends."""
    model = load(Path(sys.argv[1])).reference
    for line in sys.stdin.buffer:
        timings = generate(model, msgspec.json.decode(line, type=BareRound))
        sys.stdout.buffer.write(msgspec.json.encode(timings) + b"\n")
        sys.stdout.buffer.flush()


def generate(model: Any, asked: BareRound) -> Timings:
    """Generate all answers in one batch; note when the host had each token."""
    count = len(asked.prompts)
    generator = BatchGenerator(
        model,
        stop_tokens=[[stop_id] for stop_id in asked.stop_ids],
        completion_batch_size=count,
        prefill_batch_size=asked.prefill_rows,
    )
    started_s = time.perf_counter()
    uids = generator.insert(asked.prompts, max_tokens=[asked.max_tokens] * count)
    token_s: dict[int, list[float]] = {uid: [] for uid in uids}
    running = count
    while running:
        _, responses = generator.next()
        at_s = time.perf_counter() - started_s
        for response in responses:
            token_s[response.uid].append(at_s)
            running -= response.finish_reason is not None
    generator.close()
    return Timings(
        [
            StreamTimes(len(prompt), len(token_s[uid]), token_s[uid], token_s[uid][-1])
            for uid, prompt in zip(uids, asked.prompts, strict=True)
        ]
    )


if __name__ == "__main__":
    main()
