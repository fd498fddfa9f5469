"""Correlated randomness without a dealer: client and server make products between them, under encryption (BFV)."""
