"""Bulk jobs: every row of a file is answered once, over many sessions, and a job that ended early is resumed.

askers.py    clients that answer rows; tables of answers: Parquet, CSV, TSV, JSON lines
ray_data.py  the same clients on the nodes of a Ray cluster
job.py       the job, and the journal of what was answered
"""
