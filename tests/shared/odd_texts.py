"""Texts as strangers type them: short, long, repeated, in any script, or no language at all. Seeded.

Each kind is a function of a random generator. Texts that calibration reads
(models/loading/calibration_texts.py) are left out.
"""

import random
import string
from collections.abc import Callable

from blindformer.models.loading.calibration_texts import ODD, TEXTS

SCRIPTS = {
    "latin": (0x00C0, 0x024F),
    "greek": (0x0391, 0x03C9),
    "cyrillic": (0x0410, 0x044F),
    "hebrew": (0x05D0, 0x05EA),
    "arabic": (0x0627, 0x064A),
    "devanagari": (0x0905, 0x0939),
    "thai": (0x0E01, 0x0E2E),
    "hangul": (0xAC00, 0xD7A3),
    "kana": (0x3041, 0x30FA),
    "han": (0x4E00, 0x9FA5),
    "mathematics": (0x2200, 0x22FF),
    "boxes": (0x2500, 0x257F),
    "emoji": (0x1F300, 0x1F5FF),
    "faces": (0x1F600, 0x1F64F),
}
WORDS = """
hi hey test ok yes nope please why help asdf qwerty lol hmm cat banana the of and a I you me zebra Tuesday Paris quantum
gravity ketchup password umbrella idiosyncratic antidisestablishmentarianism xylophone null None undefined True NaN
import return SELECT DROP TABLE foo bar baz localhost README
""".split()  # noqa: SIM905


def _word(r: random.Random) -> str:
    return r.choice(WORDS)


def _letters(r: random.Random, most: int) -> str:
    return "".join(r.choices(string.ascii_letters, k=r.randint(1, most)))


def _phrase(r: random.Random) -> str:
    return " ".join(r.choices(WORDS, k=r.randint(2, 8)))


def _digits(r: random.Random) -> str:
    parts = [str(r.randint(0, 10 ** r.randint(1, 12))) for _ in range(r.randint(1, 12))]
    return r.choice([" ", "-", ".", ", "]).join(parts)


def _symbols(r: random.Random) -> str:
    return "".join(r.choices(string.punctuation + " ", k=r.randint(1, 60))) + r.choice("!?.:;)(")


def _script(r: random.Random) -> str:
    low, high = SCRIPTS[r.choice(list(SCRIPTS))]
    words = ["".join(chr(r.randint(low, high)) for _ in range(r.randint(1, 8))) for _ in range(r.randint(1, 12))]
    return " ".join(words)


def _mixed(r: random.Random) -> str:
    return " ".join(r.choice([_word, _digits, _symbols, _script])(r) for _ in range(r.randint(2, 5)))


def _repeated(r: random.Random) -> str:
    piece = r.choice([_word, lambda r: _letters(r, 3), lambda r: r.choice(string.punctuation), _script])(r)
    return r.choice([" ", "", ", "]).join([piece] * r.randint(2, 200))


def _shouted(r: random.Random) -> str:
    return r.choice([str.upper, str.title, str.swapcase])(_phrase(r)) + "!" * r.randint(1, 30)


def _unbroken(r: random.Random) -> str:
    return "".join(r.choices(string.ascii_letters + string.digits + "+/=_", k=r.randint(20, 400)))


def _spaced(r: random.Random) -> str:
    return r.choice([" ", "\t", "\n", "\u00a0", "\u200b"]).join([" " * r.randint(0, 5), *_phrase(r).split(), "\n\n"])


def _code(r: random.Random) -> str:
    name = _letters(r, 9)
    return r.choice(
        [
            f"<{name} class='{_word(r)}'>{_digits(r)}</{name}>",
            f'{{"{name}": [{_digits(r)}, null], "{_word(r)}": {{}}}}',
            f"https://{name}.example/{_unbroken(r)[:40]}?{_word(r)}={r.random()}",
            f"\\frac{{{name}}}{{{r.randint(1, 99)}}} \\sum_{{i=0}}^n x_i^{r.randint(2, 9)}",
            f"{name}@{_word(r)}.example; +{_digits(r)}",
        ]
    )


def _cut(r: random.Random) -> str:
    """Words with letters lost, doubled and exchanged."""
    letters = list(" ".join(r.choices(WORDS, k=r.randint(3, 40))))
    for _ in range(len(letters) // 4):
        at = r.randrange(len(letters))
        letters[at] = r.choice(["", letters[at] * 2, r.choice(string.ascii_lowercase)])
    return "".join(letters)


def _long(r: random.Random) -> str:
    return " ".join(r.choice([_word, _word, _digits, _script])(r) for _ in range(r.randint(60, 400)))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "one word": _word,
    "one letter": lambda r: r.choice(string.ascii_letters + string.digits + string.punctuation),
    "letters": lambda r: _letters(r, 12),
    "phrase": _phrase,
    "digits": _digits,
    "symbols": _symbols,
    "script": _script,
    "mixed": _mixed,
    "repeated": _repeated,
    "shouted": _shouted,
    "unbroken": _unbroken,
    "spaced": _spaced,
    "code": _code,
    "typing errors": _cut,
    "long": _long,
}


def odd_texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(kind, text), the kinds in turn; no text twice where a kind has enough of them."""
    r, kinds, texts = random.Random(seed), list(KINDS), []
    known = {text.strip() for text in (*TEXTS, *ODD)}
    seen: set[str] = set()
    while len(texts) < count:
        kind = kinds[len(texts) % len(kinds)]
        text, tries = "", 0
        while not text.strip() or text.strip() in known or (text in seen and tries < 20):
            text, tries = KINDS[kind](r), tries + 1
        seen.add(text)
        texts.append((kind, text))
    return texts
