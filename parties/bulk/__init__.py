"""Bulk jobs: every row of a file is answered once, over many sessions, and a job that ended early is resumed.

askers.py    clients that answer rows, here or on a Ray cluster; tables of answers: Parquet, CSV, TSV, JSON lines
job.py       the job, and the journal of what was answered
"""
