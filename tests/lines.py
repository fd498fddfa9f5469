"""Lines of .py, .c and .h files by package: now, what this change adds, and the budget that CONTRIBUTING.md names.

`make test` ends with it. Nothing fails where a budget is exceeded: it is to be seen.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protocols", "approximations", "models", "parties", "federated", "bench", "tests")
BUDGET = re.compile(r"^\| `?([\w ]+?)`? \| ([\d,]+) \|", re.MULTILINE)


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if done.returncode == 0 else ""


def added() -> Counter[str]:
    """Since the branch left main, or since the last commit but one where a clone is shallow; none without git."""
    base = (git("merge-base", "HEAD", "origin/main") or git("merge-base", "HEAD", "main")).strip()
    if base in ("", git("rev-parse", "HEAD").strip()):
        base = "HEAD~"
    lines: Counter[str] = Counter()
    for row in git("diff", "--numstat", "--no-renames", base, "--", "*.py", "*.c", "*.h").splitlines():
        plus, minus, path = row.split("\t")
        lines[path.split("/")[0]] += int(plus) - int(minus)
    return lines


def main() -> None:
    now, changed = Counter[str](), added()
    for package in PACKAGES:
        files = [file for kind in ("py", "c", "h") for file in (ROOT / package).rglob(f"*.{kind}")]
        now[package] = sum(len(file.read_bytes().splitlines()) for file in files)
    for lines in (now, changed):
        lines["product"] = sum(lines[package] for package in PACKAGES[:5])
    budget = {name: int(most.replace(",", "")) for name, most in BUDGET.findall((ROOT / "CONTRIBUTING.md").read_text())}
    print(f"{'lines':15}{'now':>8}{'change':>8}{'budget':>8}")
    for name in (*PACKAGES, "product"):
        print(f"{name:15}{now[name]:8,}{changed[name]:+8,}{budget.get(name, ''):>8}")


if __name__ == "__main__":
    main()
