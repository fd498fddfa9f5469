"""The Ray cluster of bulk jobs and replicas: the one that RAY_ADDRESS names, or one of this machine, for now."""

from __future__ import annotations

import logging
import os
import signal
import threading
from importlib.util import find_spec

from ..protocols.errors import BlindformerError


class ClusterError(BlindformerError):
    """There is no Ray cluster to work on."""


def connect() -> None:
    """Errors: ClusterError."""
    if find_spec("ray") is None:
        raise ClusterError("--engine ray: ray is missing; run: pip install 'blindformer[scale]'")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do some day
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address, at_sigterm = os.environ.get("RAY_ADDRESS"), signal.getsignal(signal.SIGTERM)
    try:
        # A cluster of one machine has it for itself: its processes yield to no others.
        alone = None if address else {"worker_niceness": 0}
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, _system_config=alone)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ClusterError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({reason})") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)  # Ray's would end a command with code 1, and be inherited
