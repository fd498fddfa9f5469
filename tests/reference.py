"""The pages' parts that the code makes: the table of approximations, the Python reference, the classes of errors, the
commands' options, and what was measured."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blindformer.tests import figures

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protocols", "approximations", "models", "parties", "federated")
WIDTH = 100
PLUMBING = {  # public methods that only this package calls
    "Client": "addresses ask",
    "Compiled": "answer decode encode_inputs encode_known",
    "EncryptedClient": "knock",
    "LocalParties": "all_vouched check_open costs processes report_of texts_of_query vouched",
    "Loaded": "examples length_for",
    "Plan": "bits_of choice chosen constants content_hash from_json halvings has_scores same_functions to_json "
    "trained_fits widened",
    "PrivateModel": "bound",
}


def approximations() -> str:
    """The table of docs/approximations.md, from the registry."""
    from blindformer.approximations import choices

    lines = [
        "| kind | name | largest error | thresholds | options | source |",
        "|---|---|---|---|---|---|",
    ]
    for choice in choices():
        if choice.function is None:
            continue
        stated = ""
        if choice.error is not None and choice.domain is not None:
            stated = f"{choice.error:g} on [{choice.domain[0]:g}, {choice.domain[1]:g}]"
        name = f"`{choice.name}`" + (" (distil)" if choice.needs_distillation else "")
        options = ", ".join(choice.options())
        lines.append(f"| {choice.kind} | {name} | {stated} | {choice.comparisons} | {options} | {choice.source} |")
    return "\n".join(lines) + "\n"


def python() -> str:
    """All that `blindformer.__all__` names: functions, then classes with a table of their methods, without PLUMBING.

    A method that two classes have with the same text is in the table of the first.
    """
    import blindformer as bf

    public = {name: getattr(bf, name) for name in bf.__all__}
    parts = [_documented(f"bf.{name}", value) for name, value in public.items() if not inspect.isclass(value)]
    first: dict[str, str] = {}  # the row of a method: the class that shows it
    for name, value in public.items():
        if inspect.isclass(value):
            parts.append(_documented(f"bf.{name}", value))
            hidden = [own for cls in value.__mro__ for own in PLUMBING.get(cls.__name__, "").split()]
            rows = [_row(own, method) for own, method in _methods(value) if own not in hidden]
            others = sorted({first[row] for row in rows if row in first})
            parts += ["| method | meaning |", "|---|---|"] * any(row not in first for row in rows)
            parts += [row for row in rows if row not in first]
            parts += ["", *(f"It also has the methods of `{other}`.\n" for other in others)]
            first |= {row: name for row in rows if row not in first}
    return "\n".join(parts)


def errors() -> str:
    """A row for each class that the Python reference names, and for its bases and subclasses, which it indents."""
    kinds: dict[str, list[tuple[str, str, str]]] = {}
    for path in [ROOT / "errors.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.bases:
                meaning = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                where = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
                kinds.setdefault(ast.unparse(node.bases[0]), []).append((node.name, meaning, where))

    named = set(re.findall(r"\w+", python()))

    def rows(base: str, depth: int) -> Iterator[str]:
        for name, meaning, where in sorted(kinds.get(base, ())):
            below = list(rows(name, depth + 1))
            if below or name in named or base in named - {"BlindformerError"}:
                yield f"| {'&nbsp;' * 4 * depth}`{name}` | {meaning} | `blindformer.{where}` |"
            yield from below

    head = ["| class | means | module |", "|---|---|---|"]
    return "\n".join([*head, *rows("BlindformerError", 0)]) + "\n"


def options() -> str:
    """Options with the same text in several commands in one list; then a list of the others for each command, with the
    rules about other options."""
    from blindformer.tests.pages import leaves

    def row(command: Any, item: Any) -> tuple[str, str, str]:
        name = item.opts[0] if item.opts[0][0] == "-" else item.make_metavar()
        default = "" if item.required or item.default in (None, False) else f" Default: `{item.default}`."
        rules = "".join(map(str, command.rules.get(item.name, ())))
        return f"`{name}`", f"{item.help.removesuffix(rules)}{default}".replace(" (default: none)", ""), rules

    rows = {
        " ".join(path): [
            row(command, item) for item in command.params if not getattr(item, "hidden", item.name == "help")
        ]
        for path, command in leaves().items()
    }
    counts = Counter(row[:2] for own in rows.values() for row in own)
    shared: dict[str, str] = {}  # of several texts of one option, the most frequent
    for (name, text), count in counts.most_common():
        if count > 1:
            shared.setdefault(name, text)
    parts = ["### Common options", "", *(f"- {name}: {text}" for name, text in sorted(shared.items()))]
    for title, own in rows.items():
        parts += ["", f"### Options of `{title}`", ""]
        parts += [f"- {name}: {text}{rules}" for name, text, rules in own if shared.get(name) != text]
        common = [f"{name}{rules.lower().rstrip('.')}" for name, text, rules in own if shared.get(name) == text]
        parts += [f"- Common options: {', '.join(common)}."] if common else []
    return "\n".join(parts) + "\n"


GENERATED = {"approximations": approximations, "python": python, "errors": errors, "options": options}
GENERATED |= {"results": figures.results, "costs": figures.costs, "many": figures.many, "compared": figures.compared}
GENERATED |= {"open": figures.open_models, "levels": figures.levels, "accuracy": figures.accuracy}
GENERATED |= {"students": figures.students, "no-dealer": figures.no_dealer}
GENERATED |= {"wraps": figures.wraps, "architectures": figures.architectures, **figures.in_words()}
PART = re.compile(rf"(<!-- ({'|'.join(GENERATED)}):start -->\n?).*?(?=<!-- \2:end -->)", re.DOTALL)


def renewed(page: str) -> str:
    """A page with its generated parts as the code makes them now."""
    return PART.sub(lambda match: match[1] + GENERATED[match[2]](), page)


def _methods(cls: type) -> list[tuple[str, Any]]:
    """Public ones of the class and of those that it is made of here, with a docstring."""
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("blindformer."):
            members |= {name: value for name, value in vars(base).items() if not name.startswith("_")}
    shown = {name: getattr(value, "__func__", value) for name, value in members.items()}
    return [
        (name, value)
        for name, value in sorted(shown.items())
        if (inspect.isfunction(value) or isinstance(value, property)) and value.__doc__
    ]


def _row(name: str, method: Any) -> str:
    """With the first sentence of its docstring."""
    sentence = re.split(r"\.(?=\s)", (inspect.getdoc(method) or "").split("\n\n")[0])[0].rstrip(".")
    arguments = "" if isinstance(method, property) else _signature(method)
    return f"| `{name}{arguments}` | {' '.join(sentence.split())} |".replace("``", "`")


def _documented(title: str, value: Any) -> str:
    text = [f"## `{title}`", ""]
    if signature := _signature(value):
        text += ["```python", textwrap.fill(f"{title}{signature}", WIDTH, subsequent_indent="    "), "```", ""]
    for paragraph in (inspect.getdoc(value) or "").split("\n\n"):
        if language := "python" if paragraph[0] == " " else "text" if re.search(r"\S {2,}\S", paragraph) else "":
            text += [f"```{language}", textwrap.dedent(paragraph), "```", ""]
        else:
            text += [paragraph.replace("``", "`"), ""]
    return "\n".join(text)


def _signature(value: Any) -> str:
    """As it is written, without types: `help` shows these."""
    if inspect.isclass(value) and value.__init__ in (object.__init__, Exception.__init__):
        return ""
    source = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
    except (OSError, TypeError, SyntaxError):  # a dataclass's own, a model's of pydantic
        return ""
    assert isinstance(node, ast.FunctionDef)
    everything = node.args
    if everything.args and everything.args[0].arg in ("self", "cls"):
        everything.args.pop(0)
    for argument in ast.walk(everything):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(everything)})"
