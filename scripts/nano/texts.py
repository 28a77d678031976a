"""Random texts of many kinds: what nano learns to copy and is later tested on.

Called by `episodes` (training) and `evaluate` (held-out seeds). Pure: everything follows from the
`random.Random` that is passed in. Must not know Harmony, ids or torch.
"""

import json
import string
from collections.abc import Callable
from random import Random

from scripts.nano.words import ACCENTED_WORDS, CODE_WORDS, WORDS

CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗИКЛМНОПРСТУ"
GREEK = "αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΩ"
CJK = "日本語中文字人大小上下山川水火木金土月年時分東西南北你好我是的一二三四五六七八九十"
KANA = "あいうえおかきくけこさしすせそアイウエオカキクケコ"
ACCENTS = "éèêëàâäáãåçñíìîïóòôöõøúùûüýÿßæœčšžřğışłńęąÉÈÜÖÄÑÇ"
EMOJI = "😀😁😂🤣😊😍😎🤔😴🙄👍👎👏🙏💪🔥✨🎉🚀🌍🌈🍎🍕☕🐶🐱🦊❤💡📦📈🔧🔒✅❌⚠⭐"
SIGNS = ".,;:!?-_/\\|@#$%^&*()[]{}<>+=~`'\""


def text(random: Random, target: int, without: "frozenset[Kind]" = frozenset()) -> str:
    """About `target` pieces of one or several kinds; a piece is very roughly one or two tokens."""
    kinds = {kind: weight for kind, weight in KIND_WEIGHTS.items() if kind not in without}
    pieces: list[str] = []
    while len(pieces) < target:
        kind = random.choices(list(kinds), list(kinds.values()))[0]
        # Most texts are of one kind; long ones change it now and then.
        run = target if random.random() < 0.6 else random.randint(1, max(1, target))
        pieces += kind(random, min(run, target - len(pieces)))
    joined = "".join(pieces[:target]).rstrip(" ")
    return joined or random.choice(WORDS)


def hard_text(random: Random, target: int) -> str:
    """One of the kinds whose tokens look alike, so that copying them means counting."""
    kind = random.choice([repeated_digits, repeated_words, signs])
    return "".join(kind(random, target)).rstrip(" ")


def sentence(random: Random, count: int) -> list[str]:
    words = [random.choice(WORDS) for _ in range(count)]
    words[0] = words[0].capitalize()
    for index in range(len(words) - 1):
        words[index] += random.choices([" ", ", ", ". ", "\n"], [30, 3, 2, 0.3])[0]
    words[-1] += random.choice([".", "!", "?", ""])
    return words


def pseudo_words(random: Random, count: int) -> list[str]:
    alphabet = random.choice(
        [string.ascii_lowercase, string.ascii_letters, "abc", "aeioubcdlmnrst"]
    )
    return [
        "".join(random.choices(alphabet, k=random.randint(1, 7))) + random.choice([" ", " ", "-"])
        for _ in range(max(1, count // 3))
    ]


def numbers(random: Random, count: int) -> list[str]:
    pieces: list[str] = []
    while len(pieces) < count:
        length = random.choice([1, 2, 3, 4, 4, 6, 8, 12])
        pieces += random.choices(string.digits, k=min(length, count - len(pieces)))
        pieces.append(random.choice([" ", " ", ", ", ".", "-", ":", "/"]))
    return pieces


def repeated_digits(random: Random, count: int) -> list[str]:
    """Runs of one or two digits: the hardest texts to copy, since every position looks alike."""
    pieces: list[str] = []
    while len(pieces) < count:
        digits = random.choices(string.digits, k=random.choice([1, 1, 2]))
        pieces += digits * random.randint(2, 7)
        if random.random() < 0.6:
            pieces.append(random.choice([" ", ", ", "."]))
    return pieces


def repeated_words(random: Random, count: int) -> list[str]:
    unit = [random.choice([*WORDS, *SIGNS]) + " " for _ in range(random.randint(1, 3))]
    pieces: list[str] = []
    while len(pieces) < count:
        pieces += unit * random.randint(1, 5)
        pieces.append(random.choice(WORDS) + " ")
    return pieces


def accents(random: Random, count: int) -> list[str]:
    def word() -> str:
        if random.random() < 0.6:
            return random.choice(ACCENTED_WORDS)
        return "".join(random.choices(ACCENTS + string.ascii_lowercase, k=random.randint(2, 6)))

    return [word() + " " for _ in range(max(1, count // 3))]


def other_scripts(random: Random, count: int) -> list[str]:
    alphabet = random.choice([CYRILLIC, CYRILLIC, GREEK, CJK, KANA])
    return [
        "".join(random.choices(alphabet, k=random.randint(1, 4))) + random.choice([" ", ""])
        for _ in range(max(1, count // 4))
    ]


def emoji(random: Random, count: int) -> list[str]:
    return [
        random.choice(EMOJI) + random.choice(["", "", " ", random.choice(WORDS) + " "])
        for _ in range(max(1, count // 3))
    ]


def signs(random: Random, count: int) -> list[str]:
    return [random.choice(SIGNS) + random.choice(["", " "]) for _ in range(count)]


def json_text(random: Random, count: int) -> list[str]:
    return [
        json.dumps(json_object(random, 2), ensure_ascii=False) + " "
        for _ in range(max(1, count // 12))
    ]


def json_object(random: Random, depth: int) -> dict[str, object]:
    """A small object with ordinary keys."""
    keys = random.sample(CODE_WORDS, k=random.randint(0, 4))
    return {key: json_value(random, depth) for key in keys}


def json_value(random: Random, depth: int) -> object:
    """Strings and numbers mostly; `depth` bounds the nesting."""
    kind = random.choice(["text", "text", "int", "float", "bool", "null", "list", "object"])
    if kind == "text" or (depth == 0 and kind in ("list", "object")):
        return short_text(random)
    if kind == "list":
        return [json_value(random, depth - 1) for _ in range(random.randint(0, 3))]
    if kind == "object":
        return json_object(random, depth - 1)
    scalars: dict[str, object] = {
        "int": random.randint(-99, 10 ** random.randint(1, 6)),
        "float": round(random.uniform(-100, 1000), random.randint(1, 3)),
        "bool": random.random() < 0.5,
        "null": None,
    }
    return scalars[kind]


def short_text(random: Random) -> str:
    """A value for a field: some words, or something in another script."""
    kind = random.choices([sentence, pseudo_words, accents, numbers, emoji], [6, 2, 1, 1, 1])[0]
    return "".join(kind(random, random.randint(1, 4))).strip()


def code(random: Random, count: int) -> list[str]:
    pieces: list[str] = []
    while len(pieces) < count:
        name, other = random.choice(CODE_WORDS), random.choice(CODE_WORDS)
        pieces += random.choice(
            [
                [f"def {name}", "(", other, ")", ":", "\n    "],
                [f"if {name} ", random.choice(["== ", "> ", "< "]), other, ":", "\n        "],
                ["return ", name, ".", other, "(", ")", "\n"],
                [name, " = ", other, "[", str(random.randint(0, 99)), "]", "\n"],
                ["for ", name, " in ", f"range({random.randint(1, 99)})", ":", "\n    "],
                ["const ", name, " = ", "() => ", "{", other, ";", "}", "\n"],
                ["// ", name, " ", other, "\n"],
            ]
        )
    return pieces


Kind = Callable[[Random, int], list[str]]
KIND_WEIGHTS: dict[Kind, float] = {
    sentence: 5,
    pseudo_words: 3,
    numbers: 2,
    repeated_digits: 2,
    repeated_words: 1.5,
    accents: 1.5,
    other_scripts: 1.5,
    emoji: 1.5,
    signs: 1,
    json_text: 1,
    code: 2,
}
REPEATED: frozenset[Kind] = frozenset({repeated_digits, repeated_words})
