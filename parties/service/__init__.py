"""Long-lived processes: one supervisor, and one child for each connection, as PostgreSQL does it.

supervisor.py   accepts, forks, counts, reaps; holds no peer's bytes longer than it takes to pass them on
lobby.py        where a connection waits until its peer has shown that it speaks TLS
admission.py    how many sessions, how many queries at once, who is next, who is told to come back
control.py      what a child and its supervisor say to each other
child.py        the first and the last thing a child does
serve.py, dealer.py   the two services: what their children do
pairs.py        how the dealer brings a client's seed to the session of its server
logs.py, stats.py, exporter.py, metrics.py   what operators see
"""
