"""At each statement that a database is given, whichever it is: to fail there, to die there, or to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event


@contextmanager
def at_each_statement(
    before: Callable[[str], None] = lambda statement: None, after: Callable[[str], None] = lambda statement: None
) -> Iterator[None]:
    """Call these before and after each statement of this process's databases; what they raise ends it."""

    def asked(db: Any, cursor: Any, statement: str, *rest: Any) -> None:
        before(statement)

    def done(db: Any, cursor: Any, statement: str, *rest: Any) -> None:
        after(statement)

    event.listen(Engine, "before_cursor_execute", asked)
    event.listen(Engine, "after_cursor_execute", done)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", asked)
        event.remove(Engine, "after_cursor_execute", done)
