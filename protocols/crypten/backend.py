"""A torch.distributed backend over our channels: what CrypTen's communicator needs, over mutual TLS.

Operations are queued and move together when one of them is waited for, everything that waits in one flight: so
CrypTen's batched reveals and our rounds take one message to each peer. Sizes are known on both sides, as in every
channel here; nothing is pickled by this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .mesh import Mesh, Parcels
from .versions import CryptenError

NAME = "blindformer"
_JOIN: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
    dist.ReduceOp.SUM: torch.Tensor.add_,
    dist.ReduceOp.BXOR: torch.Tensor.bitwise_xor_,
}


def register() -> None:
    """Make the backend known to torch.distributed, once a process. A group is made of `pg_options=` a Mesh."""
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, _create, extended_api=True, devices=["cpu", "cuda"])


def _create(options: Any, mesh: Any) -> ChannelGroup:
    if not isinstance(mesh, Mesh) or options.global_ranks_in_group not in ([], mesh.ranks):
        raise CryptenError("torch.distributed: a group of this backend holds all parties of one session, no fewer")
    return ChannelGroup(mesh)


class _Queued(dist.Work):
    """An operation that is under way once it is waited for."""

    def __init__(self, group: ChannelGroup) -> None:
        super().__init__()
        self._group = group

    def wait(self, timeout: Any = None) -> bool:
        self._group.flush()
        return True

    def is_completed(self) -> bool:
        return self._group.idle


class ChannelGroup(dist.ProcessGroup):
    """All parties of one session. Reductions: SUM and BXOR. Errors: PeerError, from the wait; CryptenError."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh.rank, mesh.size)  # type: ignore[call-arg]
        self.mesh, self._name = mesh, ""
        self._peers = [rank for rank in mesh.ranks if rank != mesh.rank]
        self._works: list[_Queued] = []  # torch keeps no reference to a Python object that it hands out
        self._clear()

    @property
    def idle(self) -> bool:
        return not any(parcels.send or parcels.sizes for parcels in self._parcels.values())

    def flush(self) -> None:
        """Move what is queued, then put what came where it belongs, in the order of the operations."""
        parcels, arrivals = self._parcels, self._arrivals
        self._clear()
        came = {peer: iter(frames) for peer, frames in self.mesh.exchange(parcels).items()}
        for peer, put in arrivals:
            put(next(came[peer]))

    def send(self, tensors: list[Tensor], dstRank: int, tag: int = 0) -> _Queued:
        self._send(dstRank, tensors[0])
        return self._queued()

    def recv(self, tensors: list[Tensor], srcRank: int, tag: int = 0) -> _Queued:
        if srcRank not in self._peers:
            raise CryptenError("torch.distributed: receiving from anybody is not offered; name the sender")
        self._recv(srcRank, tensors[0], tensors[0].copy_)
        return self._queued()

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> _Queued:
        join = _join(opts)
        for tensor in tensors:
            for peer in self._peers:
                self._send(peer, tensor)
                self._recv(peer, tensor, lambda came, tensor=tensor: join(tensor, came))
        return self._queued()

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> _Queued:
        join, tensor = _join(opts), tensors[0]
        if opts.rootRank != self.mesh.rank:
            self._send(opts.rootRank, tensor)
            return self._queued()
        for peer in self._peers:
            self._recv(peer, tensor, lambda came: join(tensor, came))
        return self._queued()

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> _Queued:
        tensor = tensors[0]
        if opts.rootRank != self.mesh.rank:
            self._recv(opts.rootRank, tensor, tensor.copy_)
            return self._queued()
        for peer in self._peers:
            self._send(peer, tensor)
        return self._queued()

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> _Queued:
        self._collect(outputs[0], inputs[0])
        for peer in self._peers:
            self._send(peer, inputs[0])
        return self._queued()

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> _Queued:
        if opts.rootRank == self.mesh.rank:
            self._collect(outputs[0], inputs[0])
        else:
            self._send(opts.rootRank, inputs[0])
        return self._queued()

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> _Queued:
        if opts.rootRank != self.mesh.rank:
            self._recv(opts.rootRank, outputs[0], outputs[0].copy_)
            return self._queued()
        outputs[0].copy_(inputs[0][self.mesh.rank])
        for peer in self._peers:
            self._send(peer, inputs[0][peer])
        return self._queued()

    def barrier(self, opts: Any = None) -> _Queued:
        nothing = torch.zeros(1, dtype=torch.uint8)
        for peer in self._peers:
            self._send(peer, nothing)
            self._recv(peer, nothing, lambda came: None)
        return self._queued()

    def getBackendName(self) -> str:
        return NAME

    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name

    def shutdown(self) -> None:
        self._clear()
        self._works.clear()

    def _clear(self) -> None:
        self._parcels = {peer: Parcels() for peer in self._peers}
        self._arrivals: list[tuple[int, Callable[[bytearray], object]]] = []

    def _queued(self) -> _Queued:
        work = _Queued(self)
        self._works = [*self._works[-15:], work]
        return work

    def _send(self, peer: int, tensor: Tensor) -> None:
        if peer not in self._parcels:
            raise CryptenError(f"torch.distributed: there is no party {peer}, or it is this one")
        self._parcels[peer].send.append(_bytes(tensor))

    def _recv(self, peer: int, like: Tensor, put: Callable[[Tensor], object]) -> None:
        shape, dtype = like.shape, like.dtype
        self._parcels[peer].sizes.append(like.numel() * like.element_size())

        def arrived(data: bytearray) -> None:
            put(torch.frombuffer(data, dtype=dtype).view(shape).to(like.device) if data else like.clone())

        self._arrivals.append((peer, arrived))

    def _collect(self, outputs: list[Tensor], mine: Tensor) -> None:
        outputs[self.mesh.rank].copy_(mine)
        for peer in self._peers:
            self._recv(peer, outputs[peer], outputs[peer].copy_)


def _bytes(tensor: Tensor) -> memoryview:
    """A copy: a tensor that is reduced in place is sent as it was."""
    flat = tensor.detach().to("cpu", copy=True).contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _join(opts: Any) -> Callable[[Tensor, Tensor], Tensor]:
    for op, join in _JOIN.items():
        if opts is None or opts.reduceOp == op:
            return join
    raise CryptenError(f"torch.distributed: reduction {opts.reduceOp} is not offered; SUM and BXOR are")
