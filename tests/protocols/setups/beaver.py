"""beaver: server, client and dealer in threads."""

from ..harness import run_beaver


def run(case):
    return run_beaver(case).outputs
