"""N parties as processes: from a deployment's settings, and on this machine.

member.py    a process of its own, from a deployment's settings        seating.py   who is who, by these
"""
