"""How likely a model held each token of an answer, and of its prompt: by its own scores, before a temperature or a
penalty changes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte of a character that a vocabulary of pieces does not have
LEAST = -9999.0  # what the OpenAI API says of a token that never comes
_SPACE = "\u2581"


@dataclass(frozen=True)
class TokenLogprob:
    """`logprob`: the natural logarithm of the token's probability; None of a text's first token, which is given.
    `most_likely`: the most likely tokens of this place with theirs, the most likely first."""

    token: int
    logprob: float | None = None
    most_likely: tuple[tuple[int, float], ...] = ()


class Logprobs:
    """Those of one answer, as it comes: `tokens` grows before its text is told. `prompt_tokens`: the first of them.

    top    how many of the most likely tokens of each place
    echo   the prompt's tokens, too, without the prefix: the whole prompt is read anew for it
    """

    def __init__(self, top: int = 0, echo: bool = False) -> None:
        self.top, self.echo, self.tokens, self.prompt_tokens = top, echo, list[TokenLogprob](), 0
        self._prompt: list[int] = []
        self._place = self._first = 0
        self._rows: Tensor | None = None

    @property
    def of_prompt(self) -> bool:
        """Whether the next pass is to give those of the prompt, too."""
        return bool(self._prompt)

    def begin(self, ids: Sequence[int], prefix: int) -> None:
        """Before an answer to these tokens, of which the first `prefix` are the model's owner's."""
        self.tokens.clear()
        self._place, self._prompt = len(ids), list(ids[prefix:]) if self.echo else []
        self.prompt_tokens = len(self._prompt)

    def read(self, first: int, logits: Tensor) -> None:
        """What a pass gave [tokens, words], of the tokens from this place on: scores of their successors."""
        self._first, self._rows = first, logits.float().log_softmax(-1).clamp(min=LEAST)
        if prompt := self._prompt:
            self._prompt, before = [], self._place - len(prompt)
            self.tokens += [TokenLogprob(prompt[0])]
            self.tokens += [self._at(before + n, token) for n, token in enumerate(prompt[1:], 1)]

    def chosen(self, tokens: Iterable[int]) -> None:
        """The tokens that the answer goes on with, after the pass that gave their scores."""
        for token in tokens:
            self.tokens.append(self._at(self._place, token))
            self._place += 1

    def _at(self, place: int, token: int) -> TokenLogprob:
        assert self._rows is not None
        row = self._rows[place - 1 - self._first]
        best = row.topk(min(self.top, len(row)))
        most_likely = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenLogprob(token, float(row[token]), tuple(most_likely))


class Spelling:
    """What each token of a tokenizer adds to a text: half a character, too. `special`: those that an answer's text
    leaves out."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder
        self._tokenizer, self._whole = tokenizer, frozenset(added)
        self.special = frozenset(tokenizer.all_special_ids) | {token for token, one in added.items() if one.special}
        self._of_bytes = "ByteLevel" in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))

    def __call__(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a row of the table that no word has
            return b""
        if token in self._whole:
            return piece.encode()
        if (match := _BYTE.fullmatch(piece)) is not None:
            return bytes([int(match[1], 16)])
        if self._of_bytes:
            return b"".join(bytes([_bytes()[sign]]) if sign in _bytes() else sign.encode() for sign in piece)
        if _SPACE in piece:  # which decoding drops where a text begins
            return piece.replace(_SPACE, " ").encode()
        return self._tokenizer.decode([token]).encode()


@cache
def _bytes() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the others
    for those from 256 on, in their order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
