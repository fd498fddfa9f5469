"""What the client of an encoder-decoder model keeps: how an answer to a text or a recording begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .chat import Chat
from .decoder import GenerationError


@dataclass
class Seq2Seq(Chat):
    """`start`: ids of the tokens that an answer begins with. `before`: what stands before each text, by task, where a
    model was trained so."""

    start: list[int] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)

    def item(self, item: Any, task: str) -> Any:
        """A text as the model reads it."""
        return self.before.get(task, "") + item if isinstance(item, str) else item

    def prompt_for(self, most_likely: Callable[[list[int], Iterable[int]], int], **options: Any) -> list[int]:
        """Ids that an answer begins with. Of a model of speech in many languages, `language` ("en"; default: the
        most_likely) and `task` ("transcribe" or "translate", into English) are in them.

        most_likely   of some tokens, the one that comes after others

        Errors: GenerationError.
        """
        languages = self._languages
        tasks: Mapping[str, int] = getattr(self.defaults, "task_to_id", None) or {}
        language, task = options.pop("language", None), options.pop("task", None)
        if options or (not languages and (language, task) != (None, None)):
            name = next(iter(options), "language" if task is None else "task")
            raise GenerationError(f"{name}: is not an option of this model; leave it out")
        prompt = list(self.start)
        if languages:
            chosen = (
                most_likely(prompt, languages.values()) if language is None else _of(languages, language, "language")
            )
            prompt += [chosen, _of(tasks, task or "transcribe", "task")]
        untimed = getattr(self.defaults, "no_timestamps_token_id", None)
        return prompt if untimed is None else [*prompt, untimed]

    def language_of(self, prompt: Iterable[int]) -> str:
        """Which language an answer is in ("en") that begins so; empty: the prompt names none."""
        names = {number: name for name, number in self._languages.items()}
        return next((names[token] for token in prompt if token in names), "")

    @property
    def _languages(self) -> dict[str, int]:
        """The token of each language that may be heard."""
        by_token: Mapping[str, int] = getattr(self.defaults, "lang_to_id", None) or {}
        return {token.strip("<|>"): number for token, number in by_token.items()}


def prefixes(config: Any) -> dict[str, str]:
    """What stands before each text, by task, as a model's configuration has it."""
    tasks = getattr(config, "task_specific_params", None) or {}
    return {task: about["prefix"] for task, about in tasks.items() if about.get("prefix")}


def _of(known: Mapping[str, int], name: str, what: str) -> int:
    """Errors: GenerationError."""
    if name not in known:
        raise GenerationError(f"{what} {name!r}: is not known to the model; choose one of {', '.join(known)}")
    return known[name]
