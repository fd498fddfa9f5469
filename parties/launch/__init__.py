"""Processes of this machine: started with a lifeline, listened to, ended in order."""

LOCAL = "local"  # in the place of a server's address: one on this machine
