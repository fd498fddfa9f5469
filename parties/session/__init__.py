"""One session, party by party: set-up, then queries, over channels whose peers have said hello.

Two parties run protocol beaver; the client owns the data and is the querying party:

    set-up    server -> client   a catalogue of the masked weights D = W - B; then those that the client lacks
    live      client -> dealer   its seed, over a short connection
              client -> server   "live"
              server -> dealer   its seed, the keys of the masks B, the program if the dealer does not know it
    a query   client -> server   its number, and the source of its correlations: live, or the store
              live               the dealer sends the server corrections, the client makes its part from its seed
              the store          both parties mark one number as used, and read its correlations
              server <-> client  the rounds of the program; the last message opens the result to the client alone
    ahead     preprocessed correlations: both parties add them to their stores, for a later session

A party that waits for a queue, a dealer or the other party's computing gets a heartbeat every third of the timeout; so
silence always means a lost peer.

N parties run protocol crypten. The first of them is the leader: it owns the model and deals with the dealer as the
server above. Any of them own data; one gets the answers.

The dealer learns the parties' seeds, the keys of the weight masks, and how many queries there are: nothing that depends
on the text.

    two_party_server.py, two_party_client.py  two parties, with preprocessed or live correlations
    audits.py                                 how a server checks, in some runs, each message of its client
    n_party.py, parties.py                    one of N parties; who takes part: names, owners, the recipient
    helper_topology.py                        two servers for a data owner who takes no part
    dealing.py                                the dealer of any number of parties, and the leader's connection with it
    masked_weights.py, weight_transfer.py     the masked weights, and their way from the leader to all others
    online.py                                 what a query runs of a program; its rounds
    preprocessed.py                           correlations of queries to come, in memory, made in a thread
    store.py, ledger.py                       the same on disk; what is ready and what was used, marked before its use
    rendezvous_two.py, rendezvous_n.py        what they compare before any share is sent; how N parties meet
    messages.py                               what parties write to each other; whether a query may compute now
    tensors.py                                a session for code that is written for CrypTen
    rehearsal.py                              what each party computes in a query, measured on one machine
"""
