"""Processes of this machine: started with a lifeline, listened to, ended in order; and what their launcher may ask of
them beside their settings.

No deployment needs any of it. None of it changes what is computed, or who learns what.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ...protocols.errors import BlindformerError

if TYPE_CHECKING:
    from ...protocols.channel import Channel

LOCAL = "local"  # in the place of a server's address: one on this machine
NO_DEALER = "none"  # in the place of a dealer's: server and client do without
OPTION = "--local"
SCRATCH = "blindformer-"  # what the names of launchers' folders begin with


def check_no_dealer_extra() -> None:
    """Errors: BlindformerError if the libraries are missing with which two parties do without a dealer."""
    for library, name in (("nacl", "pynacl"), ("seal", "seal-python")):
        if find_spec(library) is None:
            raise BlindformerError(f"{name} is missing; run: pip install 'blindformer[nodealer]'")


@dataclass(frozen=True)
class LocalOptions:
    """`scratch`: a folder of the launcher's, removed when the party ends and the launcher is gone.

    launcher  its process: whoever makes these options
    threads   torch threads of each session
    lifeline  whether the party ends when its stdin does
    any_ring  FOR TESTS: encrypted queries with parameters below 128 bits, too
    network   FOR TESTS: name, round-trip time (seconds) and bandwidth (bits a second) to imitate on connections
    link      among N parties: the descriptor of a connection with the launcher
    """

    scratch: str = ""
    launcher: int = field(default_factory=os.getpid)
    threads: int = 1
    lifeline: bool = False
    any_ring: bool = False
    network: tuple[str, float, float] | None = None
    link: int = 0

    @classmethod
    def read(cls, text: str | None) -> LocalOptions:
        """In the party's process, as it starts. Errors: BlindformerError for what no launcher says."""
        try:
            fields = json.loads(text or "{}")
            options = cls(**{**fields, "network": tuple(fields["network"]) if fields.get("network") else None})
        except (ValueError, TypeError, AttributeError):
            raise BlindformerError(f"{OPTION}: is what a launcher on this machine says; leave it out") from None
        if options.scratch:
            if not Path(options.scratch).name.startswith(SCRATCH):
                raise BlindformerError(f"{OPTION}: {options.scratch} is no launcher's folder, and would be removed")
            atexit.register(_remove, options.scratch, options.launcher)
        return options

    def words(self) -> list[str]:
        """On a command line."""
        return [OPTION, json.dumps(asdict(self))]

    def shaped(self, channel: Channel) -> Channel:
        """The channel, as if it ran over `network`. Its other end must be shaped, too."""
        if self.network is None:
            return channel
        from ...models.program.pricing import Network
        from ..transport.shaping import ShapedChannel

        return ShapedChannel(channel, Network(*self.network))


def end_with_stdin() -> None:
    """From now on this process ends when its stdin does: its launcher has closed it, or is gone."""
    threading.Thread(target=_end_with_stdin, daemon=True, name="stdin").start()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


def _remove(scratch: str, launcher: int) -> None:
    """As long as the launcher lives it removes the folder itself, and others may be reading there."""
    if not psutil.pid_exists(launcher) or _is_ending(launcher):
        shutil.rmtree(scratch, ignore_errors=True)


def _is_ending(process: int) -> bool:
    """Whether it was killed, though it is there still: Linux closes its files a moment before (PF_EXITING)."""
    with suppress(OSError, ValueError, IndexError):
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return bool(int(after_name[6]) & 0x4)
    return False
