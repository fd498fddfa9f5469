"""clear: one process."""


def run(case):
    return case.clear()
