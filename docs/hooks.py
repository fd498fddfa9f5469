"""For mkdocs.yml: pages and files of the repository that lie outside of docs/, and fences as Markdown has them.

Pages link to each other by their places in the repository, so that links work where the repository is read. In the
site a page that lies outside of docs/ has a name in PAGES, and a file that a page links to is copied to files/.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "bench/README.md": "benchmarks.md",
}
_SOURCES = {name: source for source, name in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
_FENCE = re.compile(r"^(```\w+) .*$", re.MULTILINE)  # what follows the language is for tests


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    pages = [_source(file.src_uri) for file in files.documentation_pages()]
    for linked in sorted({target for page in pages for target in _linked(page)}):
        if _place(linked).startswith("files/") and (ROOT / linked).is_file():
            files.append(File.generated(config, _place(linked), abs_src_path=str(ROOT / linked)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    name = page.file.src_uri
    source = _source(name)

    def replaced(match: re.Match[str]) -> str:
        return os.path.relpath(_place(_target(source, match[1])), PurePosixPath(name).parent)

    return _FENCE.sub(r"\1", _LINK.sub(replaced, markdown))


def _source(name: str) -> str:
    """The place in the repository of a page of the site."""
    return _SOURCES.get(name, f"docs/{name}")


def _place(path: str) -> str:
    """The place in the site of a file of the repository."""
    inside = path.removeprefix("docs/") if path.startswith("docs/") else ""
    return PAGES.get(path) or inside or f"files/{path}"


def _target(source: str, link: str) -> str:
    return os.path.normpath(PurePosixPath(source).parent / link)


def _linked(source: str) -> Iterator[str]:
    for match in _LINK.finditer((ROOT / source).read_text(encoding="utf-8")):
        yield _target(source, match[1])
