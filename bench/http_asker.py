"""Asks a gateway for the embedding of a text, once for each line of standard input, and says the seconds: the other
process of bench/gateway.py, which imports nothing that takes long.

    python bench/http_asker.py HOST PORT MODEL TEXT

The key is the first line of standard input. An answer that is no embedding ends it.
"""

import http.client
import json
import sys
import time


def main() -> None:
    host, port, model, text = sys.argv[1:]
    headers = {"authorization": f"Bearer {sys.stdin.readline().strip()}"}
    connection, body = http.client.HTTPConnection(host, int(port)), json.dumps({"model": model, "input": text})
    for _ in sys.stdin:
        started = time.perf_counter()
        connection.request("POST", "/v1/embeddings", body, headers)
        reply = connection.getresponse()
        reply.read()
        if reply.status != 200:
            sys.exit(f"the gateway said {reply.status}")
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
