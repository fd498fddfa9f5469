"""SPU as a peer: one BERT encoder by PUMA's formulas (arXiv:2307.12533), all parties as threads of one process.

    SPU_PYTHON bench/spu_plain.py FOLDER PROTOCOL     PROTOCOL: SEMI2K (2 parties) or ABY3 (3)

Run by bench.peers with a Python that has `spu` 0.9.5 and `jax`; it imports nothing of this repository. FOLDER holds
weights.npz (Hugging Face names, linear weights transposed), inputs.npz (embedded [B, L, H], mask [B, L]) and
config.json; output.npz and spu.json are written there, and SPU logs each party's traffic. Weights and inputs are
secret-shared before the clock starts.

SEMI2K's triples are made by its trusted first party, party 0. There is no network: parties share memory.
"""

import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

PARTIES = {"SEMI2K": 2, "ABY3": 3}
MASKED = -14.0  # PUMA's exponential is cut to zero below it
GELU_LOW = (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728)
GELU_MIDDLE = (0.008526321541038084, 0.5, 0.3603292692789629, 0.0, -0.037688200365904236, 0.0, 0.0018067462606141187)


def encoder(x: Any, mask: Any, weights: dict[str, Any], config: dict[str, Any]) -> Any:
    """x [B, L, H], mask [B, 1, 1, L] added to the scores."""
    import jax.numpy as jnp

    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(x: Any, name: str) -> Any:
        return jnp.matmul(x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    def gelu(x: Any) -> Any:
        square = x * x
        fourth = square * square
        low = GELU_LOW[0] + GELU_LOW[1] * x + GELU_LOW[2] * square + GELU_LOW[3] * square * x
        middle = GELU_MIDDLE[0] + GELU_MIDDLE[1] * x + GELU_MIDDLE[2] * square + GELU_MIDDLE[4] * fourth
        middle = middle + GELU_MIDDLE[6] * fourth * square
        below, inner, above = x < -4.0, x < -1.95, x > 3.0
        piece = jnp.logical_and(jnp.logical_not(below), inner) * low
        piece = piece + jnp.logical_and(jnp.logical_not(inner), jnp.logical_not(above)) * middle
        return piece + above * x

    def softmax(x: Any) -> Any:
        x = x - jnp.max(x, axis=-1, keepdims=True)
        power = 1 + x / 32  # (1 + x / 2^5)^(2^5)
        for _ in range(5):
            power = power * power
        power = power * (x > MASKED)
        return power / jnp.sum(power, axis=-1, keepdims=True)

    def norm(x: Any, name: str) -> Any:
        import jax

        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
        return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch, length, hidden = x.shape
    for i in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{i}"

        def split(part: str, x: Any = x, name: str = name) -> Any:
            y = linear(x, f"{name}.attention.self.{part}")
            return y.reshape(batch, length, heads, hidden // heads).transpose(0, 2, 1, 3)

        scores = jnp.matmul(split("query"), split("key").transpose(0, 1, 3, 2)) / math.sqrt(hidden // heads)
        mixed = jnp.matmul(softmax(scores + mask), split("value")).transpose(0, 2, 1, 3).reshape(batch, length, hidden)
        x = norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x


def main(folder: Path, protocol: str) -> None:
    import numpy as np
    import spu
    from spu import libspu
    from spu.utils import frontend

    config = json.loads((folder / "config.json").read_text())
    weights, inputs = dict(np.load(folder / "weights.npz")), np.load(folder / "inputs.npz")
    mask = ((1 - inputs["mask"]) * 2 * MASKED)[:, None, None, :].astype(np.float32)
    values, size = (inputs["embedded"], mask, weights), PARTIES[protocol]
    flat = [inputs["embedded"], mask, *(weights[name] for name in sorted(weights))]
    names = [f"in{i}" for i in range(len(flat))]
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True
    secret = [libspu.Visibility.VIS_SECRET] * len(flat)
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        lambda x, mask, weights: encoder(x, mask, weights, config),
        values,
        {},
        names,
        secret,
        lambda out: [f"out{i}" for i in range(len(out))],
        copts=options,
    )
    runtime = libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64)
    runtime.enable_pphlo_profile = True  # each party logs what it sent
    io = spu.Io(size, runtime)
    shares = [io.make_shares(np.asarray(x, np.float32), secret[0]) for x in flat]
    link = libspu.link.Desc()
    for rank in range(size):
        link.add_party(f"party{rank}", f"thread{rank}")
    ready = threading.Barrier(size)
    results: dict[int, dict[str, Any]] = {}

    def party(rank: int) -> None:
        context = libspu.link.create_mem(link, rank)
        run = spu.Runtime(context, runtime)
        for name, share in zip(names, shares, strict=True):
            run.set_var(name, share[rank])
        ready.wait()
        started = time.perf_counter()
        run.run(executable)
        results[rank] = {"seconds": time.perf_counter() - started, "output": run.get_var("out0")}

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output = io.reconstruct([results[rank]["output"] for rank in range(size)])
    np.savez(folder / "output.npz", output=np.asarray(output, np.float32))
    figures = {"seconds": max(f["seconds"] for f in results.values()), "version": spu.__version__}
    (folder / "spu.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
