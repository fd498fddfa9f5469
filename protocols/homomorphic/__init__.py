"""Correlated randomness without a dealer: client and server make products between them, under ring-LWE (SEAL).

    linear     A W: A of one party, W of the other, encrypted once for all products with it
    products   x y elementwise: x of one party, y of the other
    replies    what goes back, and why it shows no more than its message
    lattice    keys and ciphertexts
    polynomials, residues   their arithmetic, in C and in numpy
Messages are bytes of known sizes; `linear_cost` and `product_cost` give them. No sockets here.
"""
