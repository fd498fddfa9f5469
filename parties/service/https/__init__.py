"""Encrypted queries over HTTPS: one request, one reply.

    client    keeps the secret key, encrypts and decrypts    parties/client/encrypted.py
    service   speaks HTTP, checks sizes, hands bytes on      serving.py, app.py, schema.py, bodies.py, queries.py,
                                                             workers.py
    workers   hold the weights, compute on ciphertexts       worker.py

The process that speaks HTTP holds no weights and runs nothing of SEAL. A worker forks a process for each client, which
alone reads its bytes: its crash is one refused request.
"""
