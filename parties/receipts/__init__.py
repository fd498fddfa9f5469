"""Receipts: what each party vouches for after a session, signed; what it cost; and whether a receipt is as it was."""
