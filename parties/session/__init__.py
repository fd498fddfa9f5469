"""One session, party by party: set-up, then queries, over channels that are already introduced.

Two parties run protocol beaver; one of them, the client, owns the data and asks:

    set-up    server -> client   a catalogue of the masked weights D = W - B; those that the client has not
    live      client -> dealer   its seed, over a short connection of its own
              client -> server   "live"
              server -> dealer   its seed, the keys of the masks B, the program if the dealer does not know it
    a query   client -> server   its number, and where its correlations come from: live, or the spool
              live               the dealer sends the server corrections, the client makes its part from its seed
              the spool          both parties mark one number as used, and read what they kept of it
              server <-> client  the rounds of the program; the last message opens the result to the client alone
    ahead     the same correlations, kept by both for a later session

Who waits for a queue, a dealer or the other party's computing hears a sign of life every third of the timeout; so a
silence always means that somebody is gone.

N parties run protocol crypten (party.py). The first of them is the leader: it owns the model and does with the dealer
what the server does above. Any of them own data; one gets the answers.

The dealer learns the parties' seeds, the keys of the weight masks, and how many queries there are: nothing that depends
on the text.

    server.py, client.py     two parties, with correlations of a spool or made ahead
    party.py, held.py        one of N parties; the correlations that it holds ahead
    parties.py               who takes part: names, owners, the recipient
    dealer.py, tuples.py     the dealer of any number of parties
    dealing.py               the dealer as the leader sees it
    set_up.py, weights.py, cache.py       the masked weights, from the leader to all others
    online.py                the rounds of a query
    meeting.py, gathering.py, joining.py  who dials whom: two parties, N parties; into a session and out again
    messages.py, keys.py, ahead.py, timings.py
"""
