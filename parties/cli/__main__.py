"""`python -m blindformer.parties.cli`: the same as the command `blindformer`."""

from . import main

main()
