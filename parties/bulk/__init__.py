"""Bulk jobs: every row of a file is answered once, over many sessions, and a job that ended early is resumed.

row_clients.py  clients that answer rows, also on the nodes of a Ray cluster; tables of answers in four formats
job.py          the job, and the journal of what was answered
"""
