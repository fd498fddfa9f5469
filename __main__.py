"""`python -m blindformer`: the same as the command `blindformer`."""

from .parties.cli import main

main()
