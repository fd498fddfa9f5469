"""A dealer that was killed, or stands still: client, log and readiness say so within seconds."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from blindformer.models.delegated.building import delegate_folder
from blindformer.tests.parties.gateway.conftest import running
from blindformer.tests.shared.deployment import Deployment, eventually

SOON = 20.0  # seconds; ten on a machine that does nothing else
TEXT = "how is my password ?"


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["private", "public"])
def test_a_dealer_that_does_not_answer_is_named_within_seconds(compiled, tiny_classifier, tmp_path, capfd, weights):
    if weights == "public":
        compiled = delegate_folder(tiny_classifier, tmp_path / "open")
    with Deployment(tmp_path, compiled, server={"metrics": "127.0.0.1:0"}, timeout=60) as site:
        section = {"folder": site.client_folder, **site.addresses(), "certificates": site.certificates}
        with running(tmp_path / "key", {"far": section}) as gateway:

            def ask():
                return gateway.http.post("/classify", json={"model": "far", "input": TEXT})

            def ready():
                return [site.server.get("/readyz")[0], gateway.http.get("/readyz").status_code]

            def send(how):
                for process in [*site.dealer.children(), psutil.Process(site.dealer.pid)]:
                    process.send_signal(how)

            for how in (signal.SIGSTOP, signal.SIGKILL):
                eventually(lambda: ready() == [200, 200], "server and gateway are ready")
                assert ask().status_code == 200
                send(how)
                started = time.monotonic()
                while (response := ask()).status_code == 200:
                    pass  # by correlations that were made before
                message = response.json()["error"]["message"]
                assert (response.status_code, "dealer: " in message, "\n" in message) == (502, True, False), message
                eventually(lambda: ready() == [503, 503], "neither is ready", patience=SOON)
                site.server.wait_for("dealer-gone", patience=SOON)
                assert time.monotonic() - started < SOON
                assert "dealer: " in next(line for line in capfd.readouterr().err.splitlines() if "party-gone" in line)
                if how == signal.SIGSTOP:
                    send(signal.SIGCONT)
                site.restore()
            eventually(lambda: ready() == [200, 200], "both are ready again")
            assert ask().status_code == 200
