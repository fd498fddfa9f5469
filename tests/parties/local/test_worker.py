"""The worker's own command line."""

from __future__ import annotations

import subprocess
import sys


def test_a_worker_explains_its_arguments():
    found = subprocess.run(
        [sys.executable, "-m", "blindformer.parties.local.worker", "judge"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("usage:")
