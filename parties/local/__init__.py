"""Parties on this machine: private sessions of a model, compared, judged, in processes or threads."""
