"""pllm-run as a peer: its own benchmark of a language model, with the text that it writes.

    PLLM_PYTHON bench/pllm_plain.py FOLDER TOKENS < PROMPT

Run by bench.peers with a Python that has `pllm-run` 0.1.0a2; it imports nothing of this repository. FOLDER is what
save_pretrained wrote. A client, an inference role and a preparation role are processes of this machine; correlations
are made before the clock starts. Its record holds no text, so the text is read from the state that it polls.
"""

import json
import sys
from importlib.metadata import version
from typing import Any


def main(folder: str, tokens: str) -> None:
    from pllm.runtime import benchmark_cli  # type: ignore[import-not-found]

    state, states = benchmark_cli._run_state, []

    def kept(snapshot: dict[str, Any]) -> dict[str, Any]:
        states.append(state(snapshot))
        return states[-1]

    benchmark_cli._run_state = kept
    report = benchmark_cli.run_loopback_benchmark(
        model=folder, model_id="peer", tiny=False, prompt=sys.stdin.read(), max_output_tokens=int(tokens), warmups=0,
        repetitions=1, timeout_seconds=900,
    )  # fmt: skip
    print(json.dumps({**report["runs"][0], "text": states[-1]["text"], "version": version("pllm-run")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
