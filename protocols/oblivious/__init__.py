"""Oblivious transfer: correlated randomness that two parties make between them, without a dealer."""
