"""Several of a service on the nodes of a Ray cluster, behind one address that tells each session where to go.

    front.py     the address: a service that answers a hello with a replica's address, and computes nothing
    driver.py    a process apart, the cluster's driver: starts replicas, watches, replaces and drains them
    replica.py   on a node: the same `blindformer serve` or `dealer` that runs without a cluster

Front and replicas show a certificate of one role, one CA and one host, the one that was dialled first; all may have the
same. So whoever could lie about where to go could send a session only to who may serve it anyway, or nowhere.
"""
