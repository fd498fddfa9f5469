"""Topology `helper`: a second server, which must not collude with the first, plays P1 for data owners.

    owner.py        the data owner: splits its values, a seed to one server, a tensor to the other; adds answers
    party.py        the helper: a client's session whose sources are the shares it is sent
    owner_shares.py the server: takes the owner's shares, gives the owner its answer shares

The server has two processes for one session, the helper's and the owner's: service/helper.py.

    owner  -> server, helper   hello, with the session's id, which the owner draws
    helper -> server, dealer   hello, with the same id, then all that a client does (session/)
    helper -> owner            {"open"}: set-up is done
    a query  owner -> helper   {"query": k}
             helper, server    admission and correlations; meanwhile helper -> owner {"waiting"}, or {"busy"}
             helper -> owner   {"ready": k}: only now do shares leave the owner, never for a query that is turned away
             owner -> helper   a fresh seed         owner -> server   its shares, one tensor
             helper <-> server the rounds of the program
             helper, server -> owner  their shares of the answer

Both servers see uniform shares and masked openings; the owner sees a fresh sharing of its answer and nothing else.
Helper and server together see everything: they must be run by parties that do not work together.
"""
