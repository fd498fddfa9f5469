"""Bulk jobs: every row of a file is answered once, over many sessions, and the job goes on where it was ended.

tables.py    answers out: Parquet, CSV, TSV, JSON lines
journal.py   what was answered already
askers.py    who asks: sessions of this process, or of a Ray cluster's
job.py       the job
"""
