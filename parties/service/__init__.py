"""Long-lived processes: one supervisor, and one child for each connection, as PostgreSQL does it.

start.py        from settings to a service that serves: its port, its scratch folder
service.py      what every service does alike: its loop, whom it lets in, signals, its end; a session's first steps
acceptor.py     the lobby: where a connection waits until its peer has shown that it speaks TLS
admission.py    limits; how many sessions, how many queries at once, who is next, who is asked to retry later
supervisor.py   one process for each connection: forked, heard, reaped
control.py, child.py   what a child and its supervisor say to each other; the first and the last thing a child does
two_party.py, helper.py, dealer.py, delegated.py, encrypted.py   what each party's sessions are
quota.py        how much one certificate's name may ask; whose name has deviated
identity.py     this party's certificate while it runs
logs.py, metrics.py   what operators see
"""
