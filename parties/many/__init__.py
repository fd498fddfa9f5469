"""A session of N parties and a dealer, on protocol `crypten`: from the roster to the answer.

roster    party 0, the leader, owns the model; some own data; one gets the answers. All agree on its hash
mesh      each party dials those before it in the roster, and the dealer
set-up    leader -> dealer     the program, the keys of the masks B; every party: its seed
          leader -> others     the masked weights D = W - B
a query   first data owner -> others   its number
          dealer -> leader             corrections; the others fill their tapes from their seeds
          leader -> others             `ready`
          all <-> all                  the rounds of the program, on CrypTen's communicator
ahead     the same correlations, kept in memory for queries to come, within bounds (ahead.py)

roster.py    who is who            meeting.py   who dials whom
party.py     one party             dealer.py    the dealer, and what the leader asks of it
worker.py    a process each        launcher.py  all of them on this machine
pricing.py   what a query costs all
member.py    a process of its own, from a deployment's settings        seating.py   who is who, by these
"""
