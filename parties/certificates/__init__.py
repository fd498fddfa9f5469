"""Development certificates: a CA, one certificate a party, renewal, revocation, and TLS contexts made of them."""
