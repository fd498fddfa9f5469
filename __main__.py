"""`python -m blindformer`: the same as the command `blindformer`."""

from .parties.cli import process

process()
