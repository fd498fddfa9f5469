"""Certificates: a CA, one certificate a party, renewal, revocation, and TLS contexts made of them."""

EXPIRY_DAYS = 14.0  # of certificates that end sooner, doctors and services warn
