"""Processes of this machine: started with a lifeline, listened to, ended in order."""
