"""Trains the embedded model nano: `python -m scripts.train_nano --help`.

Needs the extra `train` (PyTorch), in an environment of its own if you like: it leaves plain weights
and a tokenizer in `.train/`, of which `python -m scripts.nano.export` makes the model folder.
Resumable: every two minutes of training a checkpoint is written, and the same command continues
from it. Progress is measured in minutes, so that the schedule fits whatever machine it runs on.
On a busy machine set OMP_WAIT_POLICY=PASSIVE: threads that spin make a step ten times slower.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.nano import batches
from scripts.nano.batches import Batch
from scripts.nano.config import NanoConfig
from scripts.nano.corpus import tokenizer_corpus
from scripts.nano.network import LayerCache, Nano
from scripts.nano.tokenizer import train_tokenizer
from scripts.nano.weights import save_weights
from verger.formats.vocabulary import Vocabulary

SEED = 20
BATCH_TOKENS = 4096
PEAK_RATE = 2e-3
WARM_UP_STEPS = 100
BALANCE_WEIGHT = 0.01
QUANTISED_FROM = 0.6  # of the whole training: from here on the experts are rounded to MXFP4
PREFIX_CHUNK = 512
CHECKPOINT_EVERY_S = 120
LOG_EVERY_STEPS = 25


@dataclass(frozen=True, slots=True)
class Phase:
    """From `start` (fraction of the training) on, this share of the steps has a long prefix."""

    start: float
    long_share: float
    longest_prefix_tokens: int


PHASES = (
    Phase(0.0, 0.0, 0),
    Phase(0.25, 0.08, 1_000),
    Phase(0.40, 0.12, 4_500),
    Phase(0.65, 0.12, 13_000),
)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    vocabulary = prepare_tokenizer(arguments.folder / "tokenizer.json")
    trainer = Trainer(vocabulary, arguments.folder / "checkpoint.pt", arguments.minutes * 60)
    trainer.run()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded model nano.")
    parser.add_argument("--minutes", type=float, default=80, help="of training, in all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(".train"))
    return parser.parse_args()


def prepare_tokenizer(path: Path) -> Vocabulary:
    """Trains the tokenizer on the first run and reads it on later ones."""
    if not path.exists():
        train_tokenizer(tokenizer_corpus()).save(str(path), pretty=False)
    return Vocabulary.from_file_bytes(path.read_bytes())


class Trainer:
    """The loop: choose a batch, step, log, checkpoint, until the training time is used up."""

    def __init__(self, vocabulary: Vocabulary, checkpoint: Path, budget_s: float) -> None:
        torch.manual_seed(SEED)
        self.vocabulary, self.checkpoint, self.budget_s = vocabulary, checkpoint, budget_s
        self.model = Nano(NanoConfig(vocab_size=vocabulary.size))
        self.optimizer = make_optimizer(self.model)
        self.step = 0
        self.trained_s = 0.0
        if checkpoint.exists():
            self._load()
        # A resumed run draws new texts: the position in the stream is not worth storing.
        self.random = Random(f"{SEED}-{self.step}")
        self.short: Iterator[Batch] = batches.short_batches(
            Random(f"short-{SEED}-{self.step}"), vocabulary, BATCH_TOKENS
        )
        self.meters = {"short": Meter(), "long": Meter()}

    @property
    def progress(self) -> float:
        return min(1.0, self.trained_s / self.budget_s)

    def run(self) -> None:
        saved_s = self.trained_s
        while self.progress < 1.0:
            began_s = time.monotonic()
            self._step()
            self.trained_s += time.monotonic() - began_s
            if self.step % LOG_EVERY_STEPS == 0:
                self._log()
            if self.trained_s - saved_s > CHECKPOINT_EVERY_S:
                self._save()
                saved_s = self.trained_s
        self._save()

    def _step(self) -> None:
        phase = [phase for phase in PHASES if phase.start <= self.progress][-1]
        is_long = self.random.random() < phase.long_share
        batch = self._long_batch(phase) if is_long else next(self.short)
        self.model.quantise_experts(self.progress >= QUANTISED_FROM)
        with torch.autocast("cpu", torch.bfloat16):  # a third faster where the CPU has AVX512-BF16
            past = prefill(self.model, batch.prefix) if batch.prefix else None
            output = self.model(batch.inputs, past, start=len(batch.prefix))
        loss = weighted_loss(output.logits, batch)
        (loss + BALANCE_WEIGHT * output.balance).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.progress)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.meters["long" if is_long else "short"].add(loss.item(), output.logits, batch)

    def _long_batch(self, phase: Phase) -> Batch:
        tokens = int(math.exp(self.random.uniform(5.5, math.log(phase.longest_prefix_tokens))))
        rows = 12 if tokens < 6_000 else 8
        return batches.long_batch(self.random, self.vocabulary, tokens, rows)

    def _log(self) -> None:
        figures = "  ".join(f"{name} {meter}" for name, meter in self.meters.items())
        self.meters = {name: Meter() for name in self.meters}
        rate = learning_rate(self.step, self.progress)
        print(
            f"step {self.step}  {self.trained_s / 60:.1f} min  lr {rate:.1e}  {figures}", flush=True
        )

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "trained_s": self.trained_s,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)
        arrays = {name: p.detach().numpy() for name, p in self.model.named_parameters()}
        save_weights(arrays, self.checkpoint.with_name("weights.npz"))

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.trained_s = state["step"], state["trained_s"]
        print(f"continuing after step {self.step}", flush=True)


class Meter:
    """What happened since the last line of the log."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._right_tokens = self._tokens = self._right_rows = self._rows = 0

    @torch.no_grad()
    def add(self, loss: float, logits: Tensor, batch: Batch) -> None:
        is_reply = batch.weights == 1.0
        is_wrong = (logits.argmax(dim=-1) != batch.targets) & is_reply
        self._losses.append(loss)
        self._tokens += int(is_reply.sum())
        self._right_tokens += int(is_reply.sum() - is_wrong.sum())
        self._rows += len(is_reply)
        self._right_rows += int((~is_wrong.any(dim=1)).sum())

    def __str__(self) -> str:
        """A row counts as exact when greedy decoding would be right."""
        if not self._losses:
            return "-"
        return (
            f"loss {sum(self._losses) / len(self._losses):.4f}"
            f" tokens {self._right_tokens / self._tokens:.4f}"
            f" exact {self._right_rows / self._rows:.3f}"
        )


def make_optimizer(model: Nano) -> torch.optim.AdamW:
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and "bias" not in name]
    vectors = [p for name, p in model.named_parameters() if p.dim() < 2 or "bias" in name]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_RATE * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none"
    )
    weights = batch.weights.flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def prefill(model: Nano, prefix: tuple[int, ...]) -> list[LayerCache]:
    """Keys and values of a prefix, computed in chunks; sliding layers keep what a query can see."""
    past: list[LayerCache] | None = None
    for start in range(0, len(prefix), PREFIX_CHUNK):
        chunk = torch.tensor([prefix[start : start + PREFIX_CHUNK]])
        caches = model(chunk, past, start=start).cache
        windows = [layer.self_attn.window for layer in model.layers]
        past = [keep_window(*pair) for pair in zip(caches, windows, strict=True)]
    assert past is not None, "an empty prefix needs no prefill"
    return past


def keep_window(cache: LayerCache, window: int | None) -> LayerCache:
    if window is None:
        return cache
    return LayerCache(cache.keys[:, :, -window + 1 :], cache.values[:, :, -window + 1 :])


if __name__ == "__main__":
    main()
