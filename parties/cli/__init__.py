"""The command line. `process` is its entry point; each command is a file, a thin layer over what Python can call."""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from ...cores import tune_process
from ...errors import BlindformerError, is_full_gpu

_AGAIN = 0.05  # seconds, after which the finaliser is over


def process() -> NoReturn:
    """`main` as a process, which ends as soon as its threads and exit handlers have: the interpreter would first take
    torch apart, which takes long."""
    code: object = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # these two, and the streams, are what it ends first, too
    atexit._run_exitfuncs()
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or it was closed
            code = code or 120
    os._exit(code)


def main() -> None:
    """Run a command. An error that a user can act on is one line on stderr and exit code 1; the rest is a bug."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before this process began, as services may have it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (to the end)
    # A plain `kill` must end the parties and remove the session's private files, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _signal_again
    tune_process()
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if category.__module__.startswith("blindformer."):
            print(f"blindformer: warning: {message}", file=sys.stderr)
        else:
            others(message, category, *where, **more)

    warnings.showwarning = show  # in a line, without the place in our code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # of a forked process: asked where its first file stood
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    from .app import app

    try:
        app(prog_name="blindformer")  # however it was started: shells complete that name
    except BlindformerError as error:
        print(f"blindformer: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not is_full_gpu(error):
            raise
        print("blindformer: the GPU has no memory left; ask for less at once, or leave --device out", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        print(f"blindformer: the output: cannot be written ({error.strerror}); give it more room", file=sys.stderr)
        raise SystemExit(1) from None
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise
        # A name of other bytes, which one of the libraries cannot take.
        print("blindformer: the name of a file or folder is not UTF-8; rename it, or copy it to one", file=sys.stderr)
        raise SystemExit(1) from None


def _signal_again(failed: Any) -> None:
    """Python drops an exception in a finaliser. Of a signal it must end the process, so the signal comes once more."""
    number = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(failed.exc_type)
    if number is None:
        sys.__unraisablehook__(failed)
    else:
        threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
