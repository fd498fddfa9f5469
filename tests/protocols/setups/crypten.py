"""crypten: two parties, whose outputs are checked here, then five; and the dealer, in threads."""

from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import check

PARTIES = 5


def run(case):
    check(case, run_many(case, 2).outputs)
    return run_many(case, PARTIES).outputs
