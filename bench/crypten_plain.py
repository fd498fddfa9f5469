"""Plain CrypTen as a peer: one BERT encoder, two processes, loopback, CrypTen's own functions and defaults.

Party 0 owns the weights, party 1 the activations and the mask; party 1 learns the output. Both are secret-shared
before the clock starts, and a few tokens run as a warm-up; the clock covers the encoder and the opening of its output.

INSECURE, and kept so because it is what CrypTen does by default: its trusted-first-party provider lets party 0 make
every triple, so party 0 can read everything party 1 sends. Triples therefore cost no traffic, and there is no TLS.

Nothing is tuned. On the real MiniLM weights the output is therefore garbage (errors near 2^32): one feed-forward value
of layer 0 reaches 24.3, and above 24.0 the tanh form asks CrypTen's sigmoid for exp(-u) with u > 1024, where its limit
(1 - u / 512)^512 grows instead of vanishing. Seeded weights of the same shapes stay in range, at the same cost.

Tensors: B batch, L tokens, H hidden, N heads, D = H / N. `w` maps names to MPCTensors, linear weights transposed.
"""

import contextlib
import json
import logging
import math
import multiprocessing
import os
import socket
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from blindformer.protocols.crypten.versions import load_crypten
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, start_processes

MODEL_OWNER, DATA_OWNER = 0, 1
# Added to the scores of masked keys. exp(x) is (1 + x / 256)^256 here: gone at -64, and growing again below -512.
MASKED = -64.0
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class CryptenResult:
    """What one run measured. Seconds and memory are the worse party's; bytes and CPU time add up both parties."""

    seconds: float
    bytes_both_ways: int  # TCP payload that reached both parties, from the kernel, per socket
    rounds: int  # calls to the communicator; a batch counts once
    output: Tensor  # [B, L, H], as party 1 opens it
    peak_rss_mb: float  # with all that the main program imports: processes that are spawned import it, too
    cpu_seconds: float
    counted_bytes: int  # what CrypTen's own counter says both ways
    loopback_bytes: int  # what the `lo` interface carried meanwhile, headers and other users included


# The encoder, on CrypTen's tensors.


def _linear(x: Any, w: dict[str, Any], name: str) -> Any:
    return x.matmul(w[f"{name}.weight"]) + w[f"{name}.bias"]


def _layer_norm(x: Any, w: dict[str, Any], name: str, eps: float) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    # Below 2^-17 eps encodes as zero. CrypTen's start of inv_sqrt suits variances up to about 200.
    return centred * (variance + eps).inv_sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _gelu(x: Any) -> Any:
    """The tanh form: CrypTen's erf is a Taylor series that diverges."""
    inner = (x + x.square() * x * 0.044715) * math.sqrt(2 / math.pi)
    return x * 0.5 * (1 + inner.tanh())


def _attention(x: Any, mask: Any | None, w: dict[str, Any], name: str, heads: int) -> Any:
    batch, length, hidden = x.size()

    def split(part: str) -> Any:  # [B, L, H] -> [B, N, L, D]
        y = _linear(x, w, f"{name}.self.{part}")
        return y.reshape(batch, length, heads, hidden // heads).transpose(1, 2)

    q, k, v = split("query"), split("key"), split("value")
    scores = q.matmul(k.transpose(2, 3)).div(math.sqrt(hidden // heads))
    if mask is not None:
        scores = scores + mask
    mixed = scores.softmax(-1).matmul(v)  # [B, N, L, D]
    return _linear(mixed.transpose(1, 2).reshape(batch, length, hidden), w, f"{name}.output.dense")


def encoder(x: Any, mask: Any | None, w: dict[str, Any], config: dict[str, Any]) -> Any:
    """A post-LN BERT encoder on MPCTensors: x [B, L, H], mask [B, 1, 1, L] added to the scores."""
    eps = float(config.get("layer_norm_eps", 1e-12))
    for i in range(int(config["num_hidden_layers"])):
        name = f"encoder.layer.{i}"
        attended = _attention(x, mask, w, f"{name}.attention", int(config["num_attention_heads"]))
        x = _layer_norm(x + attended, w, f"{name}.attention.output.LayerNorm", eps)
        inner = _gelu(_linear(x, w, f"{name}.intermediate.dense"))
        x = _layer_norm(x + _linear(inner, w, f"{name}.output.dense"), w, f"{name}.output.LayerNorm", eps)
    return x


# One party, in its own process.


def _received_bytes() -> int:
    """TCP payload this process has received on the sockets it holds (Linux, `tcpi_bytes_received`)."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone, and not every socket is TCP
            if os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry))) as sock:
                    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("<Q", info, 128)[0]
    return total


def _loopback_bytes() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def _share(crypten: Any, path: Path, owner: int, party: int) -> dict[str, Any]:
    """MPCTensors of one file. Only the owner reads its values; the other party reads shapes."""
    if party == owner:
        tensors = load_file(path)
    else:
        with safe_open(path, framework="pt") as file:
            tensors = {name: torch.zeros(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    return {name: crypten.cryptensor(tensors[name], src=owner) for name in sorted(tensors)}


def _warm_up(inputs: dict[str, Any], weights: dict[str, Any], config: dict[str, Any]) -> None:
    """Run on a few tokens, so that libraries are loaded and connections open before the clock starts."""
    mask = inputs["mask"][..., :8] if "mask" in inputs else None
    encoder(inputs["embedded"][:, :8], mask, weights, config).get_plain_text(dst=DATA_OWNER)


def _end_with_parent() -> None:
    """In a thread: this process ends when the one that spawned it does, whatever it is waiting for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_party(party: int, folder: Path, threads: int) -> None:
    """Take part in the run that `run_crypten` laid out in `folder`; write the measures, and party 1 the output."""
    from blindformer.parties.session.online import peak_rss_mb

    threading.Thread(target=_end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there uninvited
        os.dup2(nothing, stream)
    os.environ |= {
        "RANK": str(party),
        "WORLD_SIZE": "2",
        "RENDEZVOUS": (folder / "rendezvous").as_uri(),
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(threads)
    crypten = load_crypten()
    crypten.init()
    crypten.cfg.communicator.verbose = True  # counts; the cost is an addition per call
    comm = crypten.communicator.get()
    config = json.loads((folder / "config.json").read_text())
    with crypten.no_grad():
        weights = _share(crypten, folder / "weights.safetensors", MODEL_OWNER, party)
        inputs = _share(crypten, folder / "inputs.safetensors", DATA_OWNER, party)
        _warm_up(inputs, weights, config)

        comm.barrier()
        wire, loopback = _received_bytes(), _loopback_bytes()
        comm.barrier()  # nobody sends before both have read their counters
        comm.reset_communication_stats()
        started, cpu = time.perf_counter(), time.process_time()
        result = encoder(inputs["embedded"], inputs.get("mask"), weights, config)
        output = result.get_plain_text(dst=DATA_OWNER)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        counted = comm.get_communication_stats()
        comm.barrier()
        measures = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "rounds": counted["rounds"],
            "counted": counted["bytes"],
            "received": _received_bytes() - wire,
            "loopback": _loopback_bytes() - loopback,
            "rss_mb": peak_rss_mb(),
        }
    (folder / f"party{party}.json").write_text(json.dumps(measures))
    if party == DATA_OWNER:
        save_file({"output": output.contiguous()}, folder / "output.safetensors")
    comm.barrier()
    crypten.uninit()


# The launcher.


def _encoder_weights(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The encoder's tensors under Hugging Face names without a `bert.` prefix, float32, linear weights transposed."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        short = name.removeprefix("bert.")
        parts = short.split(".")
        if parts[:2] == ["encoder", "layer"] and int(parts[2]) < layers:
            tensor = tensor.detach().float()
            tensors[short] = (tensor.t() if tensor.dim() == 2 else tensor).contiguous()
    if len(tensors) != 16 * layers:
        raise ValueError(
            f"a BERT encoder of {layers} layers has {16 * layers} tensors; the weights hold {len(tensors)}"
        )
    return tensors


def _run_both(folder: Path, threads: int, timeout: float) -> None:
    """Both parties as fresh processes; none outlives the call. Errors: RuntimeError in one line."""
    deadline = time.monotonic() + timeout
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it announces every process that it ends
    parties = start_processes(run_party, (folder, threads), nprocs=2, join=False, daemon=True)
    assert parties is not None
    try:
        while not parties.join(timeout=max(0.0, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                raise RuntimeError(f"crypten gave no answer within {timeout:g} s; both parties were stopped")
    except ProcessException as error:  # of an exception, the traceback
        raise RuntimeError(f"crypten failed: party {error.error_index}: {error.msg.strip().splitlines()[-1]}") from None
    finally:
        for process in parties.processes:
            process.kill()  # type: ignore[union-attr]
            process.join()  # type: ignore[union-attr]


def run_crypten(
    weights: dict[str, Tensor],
    config: dict[str, Any],
    embedded: Tensor,
    mask: Tensor | None = None,
    *,
    threads: int = 1,
    timeout: float = 600,
) -> CryptenResult:
    """Run the encoder once under plain CrypTen, in two fresh processes.

    weights: a BERT state dict under Hugging Face names; embeddings and pooler are ignored.
    config: `num_hidden_layers`, `num_attention_heads`, `layer_norm_eps`, as in a Hugging Face config.
    embedded: [B, L, H], the encoder's input. mask: [B, L], 1 for tokens to attend to, secret like the activations.
    threads: torch threads of each party; two each on two cores fight for them (MiniLM at 128 took 4 times as long).
    timeout: seconds for everything, start of the processes included.
    """
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {config['hidden_act']!r}")
    keys = ("num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    inputs = {"embedded": embedded.detach().float().contiguous()}
    if mask is not None:
        inputs["mask"] = ((1 - mask.float()) * MASKED)[..., None, None, :].contiguous()

    with tempfile.TemporaryDirectory(prefix="crypten-") as name:
        folder = Path(name)
        save_file(_encoder_weights(weights, int(config["num_hidden_layers"])), folder / "weights.safetensors")
        save_file(inputs, folder / "inputs.safetensors")
        kept = {key: config[key] for key in keys if key in config}
        (folder / "config.json").write_text(json.dumps(kept))
        _run_both(folder, threads, timeout)
        each = [json.loads((folder / f"party{party}.json").read_text()) for party in (0, 1)]
        output = load_file(folder / "output.safetensors")["output"]
    return CryptenResult(
        seconds=max(m["seconds"] for m in each),
        bytes_both_ways=sum(m["received"] for m in each),
        rounds=max(m["rounds"] for m in each),
        output=output,
        peak_rss_mb=max(m["rss_mb"] for m in each),
        cpu_seconds=sum(m["cpu_seconds"] for m in each),
        counted_bytes=sum(m["counted"] for m in each) // 2,  # each party counts what it sends and what it receives
        loopback_bytes=max(m["loopback"] for m in each),
    )
