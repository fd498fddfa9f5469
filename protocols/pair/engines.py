"""What two parties set up once a session, to make corrections without a dealer.

    transfers   128 base transfers each way, and seeds of a generator out of them (protocols/oblivious)
    key         the server's lattice key, of which the client gets the public part (protocols/homomorphic)
    weights     each on its first use, under this key; the client keeps them (crossed_products.py)

Both are semi-honest: what either learns stands in steps.py, crossed_products.py and the packages that they name. With a
dealer a server that deviates sees uniform values all the same. Here it has the key, and one that encrypts other things
than weights reads bits of the client's masks in replies (homomorphic/replies.py), hence of the text.
"""

from __future__ import annotations

from ..channel import Channel
from ..homomorphic.lattice import PUBLIC_BYTES, LatticeKey, LatticePublic
from ..oblivious.silent import RandomTransfers
from .crossed_products import EncryptedProducts
from .source import PairWire
from .steps import Pair
from .transfers import TransferPool

TO_CLIENT, TO_SERVER = "server to client", "client to server"


def set_up(channel: Channel, leader: bool, session: bytes) -> tuple[Pair, PairWire]:
    """One party's end, of the server (`leader`) or the client.

    session  bytes that both agree on and use once
    Errors: those of the channel, PeerProtocolError, HomomorphicError.
    """
    if leader:
        sending = RandomTransfers.sender(channel, session, TO_CLIENT)
        receiving = RandomTransfers.receiver(channel, session, TO_SERVER)
        key = LatticeKey()
        channel.send(key.public())
    else:
        receiving = RandomTransfers.receiver(channel, session, TO_CLIENT)
        sending = RandomTransfers.sender(channel, session, TO_SERVER)
        key = LatticePublic(channel.recv(PUBLIC_BYTES))
    pair = Pair(leader, TransferPool(leader, sending, receiving))
    return pair, PairWire.over(channel, EncryptedProducts(channel, key))
