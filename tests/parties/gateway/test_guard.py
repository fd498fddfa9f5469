"""Who may call the gateway: with the key, by a name that is this machine's, and no page of another site."""

from __future__ import annotations

import json
import selectors
import socket

import pytest
from blindformer.parties.gateway import KEY_VARIABLE
from blindformer.parties.gateway.access import HEADS, find_key
from blindformer.parties.gateway.problems import GatewayError
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import eventually


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/chat/completions", "/nothing"])
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "Bearer é", "Basic a2V5"])
def test_without_the_key_nothing_is_told(gateway, path, given):
    headers = {"authorization": given.encode()} if given else {"authorization": ""}
    response = gateway.http.get(path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/", "/health", "/readyz"])
def test_the_page_and_the_health_need_no_key_and_tell_nothing_secret(gateway, path):
    response = gateway.http.get(path, headers={"authorization": ""})
    assert response.status_code == 200
    assert gateway.key not in response.text
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::2]", "127.0.0.1.a"]
)
def test_a_name_that_was_made_to_point_here_is_refused(gateway, host):
    response = gateway.http.get("/v1/models", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_another_site_is_refused(gateway, headers):
    response = gateway.http.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")


def test_its_own_page_may_call_it_and_runs_only_its_own_script(gateway):
    assert gateway.http.get("/v1/models", headers={"origin": gateway.url}).status_code == 200
    policy = gateway.http.get("/").headers["content-security-policy"]
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert "unsafe" not in policy


def test_bodies_are_bounded_and_have_to_be_json(gateway):
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {gateway.key}\r\n"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as sock:
        sock.sendall(f"{head}Content-Length: {5 << 20}\r\nConnection: close\r\n\r\n".encode() + bytes(5 << 20))
        status, _, rest = sock.makefile("rb").read().partition(b"\r\n")
        assert b" 413 " in status
        assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    for body in (b"", b"{", b"[1]", b'"x"', b"[" * 100_000, b"\xff", b'{"x": "\\ud800"}'):
        response = gateway.http.post("/v1/embeddings", content=body)
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert gateway.http.get("/v1/nothing").status_code == 404
    assert gateway.http.get("/v1/embeddings").status_code == 405


def test_a_key_is_made_once_for_its_owner_alone(tmp_path, monkeypatch):
    file = tmp_path / "new" / "key"
    key, place = find_key(file)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777, place) == (0o600, 0o700, str(file))
    assert find_key(file) == (key, place)
    assert len(key) > 40
    file.chmod(0o640)
    with pytest.raises(GatewayError, match="chmod 600"):
        find_key(file)
    monkeypatch.setenv(KEY_VARIABLE, "a key that is long enough")
    with pytest.raises(GatewayError, match="no spaces") as refused:
        find_key(file)
    assert "long enough" not in str(refused.value)
    monkeypatch.setenv(KEY_VARIABLE, "k" * 20)
    assert find_key(file) == ("k" * 20, KEY_VARIABLE)


def test_half_sent_heads_push_out_each_other_and_end(gateway, monkeypatch):
    """A thousand would take all connections. A reply's connection waits for the next head in the same way."""
    address = (gateway.http.base_url.host, gateway.http.base_url.port)

    def half() -> socket.socket:
        connection = socket.create_connection(address, PATIENCE)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        return connection

    def open_ones() -> int:
        select = selectors.DefaultSelector()
        for connection in halves:
            select.register(connection, selectors.EVENT_READ)
        return len(halves) - len(select.select(0))

    answered = socket.create_connection(address, PATIENCE)
    answered.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reply = b""
    while not reply.endswith(b"}}"):
        reply += answered.recv(1 << 16)
    answered.sendall(b"GET /h")
    halves = [answered, *(half() for _ in range(HEADS + 20))]
    eventually(lambda: open_ones() <= HEADS, "the oldest are closed")
    assert answered.recv(1) == b""
    assert gateway.http.get("/health").status_code == 200
    eventually(lambda: open_ones() == HEADS - 1, "no others are closed")
    monkeypatch.setattr(gateway.server.heads, "seconds", 0.05)
    last = half()
    assert last.recv(1) == b""
    for connection in [*halves, last]:
        connection.close()
