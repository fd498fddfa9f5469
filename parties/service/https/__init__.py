"""Encrypted queries over HTTPS: one request, one reply.

    client   keeps the secret key, encrypts and decrypts    client.py, http.py, kept.py
    front    speaks HTTP, checks sizes, hands bytes on      serving.py, app.py, interface.py, bodies.py, store.py,
                                                            pool.py, jobs.py
    workers  hold the weights, compute on ciphertexts       worker.py, lines.py

The process that speaks HTTP holds no weights and runs nothing of SEAL; what reads bytes of strangers is a worker, whose
crash is its own.
"""
