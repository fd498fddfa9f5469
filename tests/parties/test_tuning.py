"""Freed memory is kept: what is allocated again costs no page faults, in any thread."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, threading

from blindformer.cores import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def use():
    blocks = [libc.malloc(1 << 20) for _ in range(32)]
    for block in blocks:
        ctypes.memset(block, 1, 1 << 20)
    for block in blocks:
        libc.free(block)

def in_a_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

in_a_thread()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    in_a_thread()
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_that_was_freed_is_used_again() -> None:
    pages = 8 * (32 << 20) // 4096
    assert faults("keep") < pages / 20 < faults()
