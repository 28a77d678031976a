"""Trains nano's tokenizer: byte-level BPE on generated text, Harmony's special tokens at the end.

Called by `scripts.train_nano` before the first step and by the tests. Must not know torch or MLX.

A space belongs to the word *before* it (real tokenizers attach it to the word after). So a text
has the same tokens wherever it stands behind a space, and copying is copying of ids: after
`You said: ` the model writes the very ids that it read.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 1024
# Digits come in pairs (that halves runs of one digit, the hardest texts to copy); everything else
# is a run of letters, of punctuation or of white space.
SPLIT_PATTERN = r"[\p{L}\p{M}]+ ?|\p{N}{1,2} ?|[^\s\p{L}\p{M}\p{N}]{1,6} ?|[\r\n]+|[^\S\r\n]+"

NAMED_SPECIALS = {
    0: "<|startoftext|>",
    1: "<|endoftext|>",
    4: "<|return|>",
    5: "<|constrain|>",
    7: "<|channel|>",
    8: "<|start|>",
    9: "<|end|>",
    10: "<|message|>",
    14: "<|call|>",
    20: "<|endofprompt|>",
}
SPECIAL_COUNT = 21
ORDINARY_COUNT = VOCABULARY_SIZE - SPECIAL_COUNT


def special_tokens() -> list[str]:
    """The real tokenizer's 21 added tokens in their order, numbered from `ORDINARY_COUNT`."""
    return [
        NAMED_SPECIALS.get(offset, f"<|reserved_{ORDINARY_COUNT + offset}|>")
        for offset in range(SPECIAL_COUNT)
    ]


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """The same texts always give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY_COUNT,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != ORDINARY_COUNT:
        raise ValueError(f"only {tokenizer.get_vocab_size()} tokens: the texts are too few")
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special_tokens()]
    )
    return tokenizer
