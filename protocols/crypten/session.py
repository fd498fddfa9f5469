"""CrypTen's process-wide state, for as long as a session lasts, and as it was before when the session ends.

What is CrypTen's and lives in its modules: the communicator, the generators, the providers, the configuration; and
torch.distributed's default group. A session sets them all up on our channels and puts them back; one at a time.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from copy import deepcopy
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from . import backend
from .generators import StreamDraws, shared_streams
from .mesh import Mesh
from .versions import CryptenError, load_crypten

crypten = load_crypten()
from crypten.communicator import DistributedCommunicator  # noqa: E402
from torch.distributed import destroy_process_group, init_process_group  # noqa: E402

from .provider import NAME, Deal, DealerProvider  # noqa: E402


class ChannelCommunicator(DistributedCommunicator):
    """CrypTen's communicator on a group that is there already: its own constructor would read environment variables."""

    def __init__(self, name: str, rank: int, world_size: int) -> None:
        self.distributed_backend, self.rendezvous = backend.NAME, "channels"
        self.world_size, self.rank, self._name = world_size, rank, name
        self.main_group = self.ttp_group = dist.group.WORLD
        self.ttp_initialized = False
        self.reset_communication_stats()


class CryptenSession:
    """CrypTen among the parties of a mesh, while this context manager is entered; on the thread that enters it.

    name    this party's
    deal    where CrypTen's tuples come from (provider.py)

    Errors: CryptenError if CrypTen or torch.distributed is in use in this process; PeerError.
    """

    def __init__(self, mesh: Mesh, name: str, deal: Deal) -> None:
        self.mesh, self.name = mesh, name
        self.provider = DealerProvider(deal)
        self._undo = ExitStack()

    @property
    def communicator(self) -> Any:
        """CrypTen's, for `over_communicator`."""
        return crypten.communicator.get()

    def __enter__(self) -> CryptenSession:
        if dist.is_initialized() or crypten.is_initialized():
            raise CryptenError("crypten: is in use in this process; end that session first, or use another process")
        try:
            self._open()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def close(self) -> None:
        """Put everything back. Safe to call twice."""
        self._undo.close()

    def _open(self) -> None:
        backend.register()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch on groups that pin no device
            init_process_group(
                backend.NAME,
                store=dist.HashStore(),  # type: ignore[attr-defined] - nothing is stored: the channels are there already
                rank=self.mesh.rank,
                world_size=self.mesh.size,
                pg_options=self.mesh,
                timeout=timedelta(days=1),  # silence is the channels' matter
            )
        self._undo.callback(destroy_process_group)
        DistributedCommunicator.instance = ChannelCommunicator(self.name, self.mesh.rank, self.mesh.size)
        self._undo.callback(setattr, DistributedCommunicator, "instance", None)
        for name, devices in crypten.generators.items():
            self._undo.callback(crypten.generators.__setitem__, name, dict(devices))
        crypten._setup_prng()
        self._undo.enter_context(StreamDraws(shared_streams(self.communicator, crypten.generators)))
        self._choose_provider()

    def _choose_provider(self) -> None:
        providers, before = vars(crypten.mpc)["__SUPPORTED_PROVIDERS"], deepcopy(crypten.cfg.config)
        self._undo.callback(crypten.cfg.set_config, before)
        providers[NAME] = self.provider
        self._undo.callback(providers.pop, NAME)
        crypten.cfg.mpc.provider = NAME
