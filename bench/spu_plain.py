"""SPU as a peer: one BERT encoder by PUMA's formulas (arXiv:2307.12533), or one product of integers. All parties are
threads of one process.

    SPU_PYTHON bench/spu_plain.py FOLDER PROTOCOL     PROTOCOL: SEMI2K, CHEETAH (2 parties) or ABY3 (3)

Run by bench.peers with a Python that has `spu` 0.9.5 and `jax`; it imports nothing of this repository. FOLDER holds
weights.npz (Hugging Face names, linear weights transposed), inputs.npz (embedded [B, L, H], mask [B, L]) and
config.json; of a product, its factors `b` and `a`. `weights_owner`: the party that knows the weights, or -1 where
they are shared. output.npz and spu.json are written there, and SPU logs each party's traffic: of the warm-up, in which
parties exchange keys, and of the program. Weights and inputs are secret-shared before the clock starts.

SEMI2K's triples are made by its trusted first party, party 0. There is no network: parties share memory.
"""

import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

PARTIES = {"SEMI2K": 2, "ABY3": 3, "CHEETAH": 2}
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
    import jax
    import numpy as np
    import spu
    from spu import libspu
    from spu.utils import frontend

    config = json.loads((folder / "config.json").read_text())
    inputs, weights = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "weights"))
    if "mask" in inputs:
        inputs["mask"] = ((1 - inputs["mask"]) * 2 * MASKED)[:, None, None, :].astype(np.float32)
    size, secret = PARTIES[protocol], libspu.Visibility.VIS_SECRET
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True
    runtime = libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64)
    runtime.enable_pphlo_profile = True  # each party logs what it sent
    runtime.experimental_enable_colocated_optimization = config["weights_owner"] >= 0
    io = spu.Io(size, runtime)
    shares: dict[str, Any] = {}

    def compiled(program: Any, name: str, *values: dict[str, Any]) -> Any:
        """The program of these values, the last of which are weights. The values are shared."""
        owners = [-1] * (len(values) - 1) + [config["weights_owner"]]
        flat = [(x, owner) for tree, owner in zip(values, owners, strict=True) for x in jax.tree_util.tree_leaves(tree)]
        names = [f"{name}_in{i}" for i in range(len(flat))]
        for one, (x, owner) in zip(names, flat, strict=True):
            shares[one] = io.make_shares(x, secret, owner)
        kinds, outputs = [secret] * len(flat), lambda out: [f"{name}_out" for _ in out]
        return frontend.compile(frontend.Kind.JAX, program, values, {}, names, kinds, outputs, copts=options)[0]

    def program(inputs: dict[str, Any], weights: dict[str, Any]) -> Any:
        if "a" in inputs:
            return inputs["a"] @ weights["b"]
        return encoder(inputs["embedded"], inputs["mask"], weights, config)

    small = {"x": np.eye(8, dtype=np.float32)}
    warm_up = compiled(lambda x, y: jax.numpy.maximum(x["x"] @ y["x"], x["x"] * x["x"]), "warm_up", small, small)
    executable = compiled(program, "program", inputs, weights)
    link = libspu.link.Desc()
    for rank in range(size):
        link.add_party(f"party{rank}", f"thread{rank}")
    ready = threading.Barrier(size + 1)
    setups, spent, outputs = [0.0] * size, [0.0] * size, [None] * size

    def party(rank: int) -> None:
        started = time.perf_counter()
        run = spu.Runtime(libspu.link.create_mem(link, rank), runtime)
        for name, share in shares.items():
            run.set_var(name, share[rank])
        run.run(warm_up)
        setups[rank] = time.perf_counter() - started
        ready.wait()
        started = time.perf_counter()
        run.run(executable)
        spent[rank], outputs[rank] = time.perf_counter() - started, run.get_var("program_out")

    threads = [threading.Thread(target=party, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    ready.wait()
    cpu = time.process_time()
    for thread in threads:
        thread.join()
    cpu = time.process_time() - cpu
    np.savez(folder / "output.npz", output=np.asarray(io.reconstruct(outputs)))
    figures = {"seconds": max(spent), "cpu_s": cpu, "setup_s": max(setups), "version": spu.__version__}
    (folder / "spu.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
