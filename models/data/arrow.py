"""A folder that the library `datasets` wrote with save_to_disk: one table, or one for each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .dataset import DataError, RawExamples
from .files import LABELS, SPLITS, classes
from .reading import TEXTS, choose


def read_folder(path: Path, text: str | None = None, label: str | None = None) -> RawExamples:
    """Rows of a Dataset or a DatasetDict on disk. Parts by the usual names are kept; unlabelled ones (-1) are left out.

    Errors: DataError.
    """
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise DataError(f"{path}: is no folder that the library datasets wrote (save_to_disk); give one, or a file")
    try:
        from datasets import load_from_disk  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{path}: reading it needs the library datasets; run: pip install datasets") from None
    try:
        found = load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds; all mean the same to a user
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]}); save it again") from None
    tables = dict(found) if hasattr(found, "values") else {"": found}
    texts: list[str] = []
    labels: list[Any] = []
    parts: list[str] = []
    names: list[str] | None = None
    for part, table in tables.items():
        if part and part not in SPLITS:
            continue
        where = f"{path} {part}".strip()
        text_column = choose(where, table.column_names, text, TEXTS, "text")
        label_column = choose(where, table.column_names, label, LABELS, "label")
        names = getattr(table.features[label_column], "names", None) or names
        pairs = zip(table[text_column], table[label_column], strict=True)
        kept = [(t, y) for t, y in pairs if y not in (None, -1)]
        texts += [str(t) for t, _ in kept]
        labels += [y for _, y in kept]
        parts += [SPLITS.get(part, "train")] * len(kept)
    if not texts:
        raise DataError(f"{path}: holds no labelled examples in parts named {', '.join(SPLITS)}")
    if names is not None:
        return RawExamples(texts, [int(y) for y in labels], tuple(names), parts)
    indices, found_names = classes(str(path), labels)
    return RawExamples(texts, indices, found_names, parts)
