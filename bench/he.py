"""A packed linear layer on ciphertexts beside TenSEAL's own vector-matrix product, one after the other.

    python -m bench.he --features 128 --tokens 64

TenSEAL encrypts a vector a token. It is timed on `--sample` of them, and the figure for all is that times their number
over the sample; everything else is measured as it is printed. One thread of one process, keys and encoding apart.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)
import argparse
import time
from typing import Any

import torch
from blindformer.models.compile import compile
from blindformer.models.encrypted import Encrypted, real_values
from torch import nn

from .provenance import json_line, provenance


def packed(features: int, tokens: int) -> dict[str, Any]:
    """Seconds of the layer for all tokens by this repository, with weights encoded, and its largest error."""
    torch.manual_seed(0)
    layer, x = nn.Linear(features, features).eval(), torch.randn(1, tokens, features)
    encrypted = Encrypted(compile(layer, {"input": x}, "he"))
    values = real_values(encrypted.compiled, encrypted.compiled.encode_inputs({"input": x}))
    request = encrypted.keys.encrypt(values)
    encrypted.evaluator.run(request, encrypted.keys.evaluation)  # encodes the weights
    started = time.perf_counter()
    answer = encrypted.evaluator.run(request, encrypted.keys.evaluation)
    seconds = time.perf_counter() - started
    (found,) = encrypted.decode(answer).values()
    with torch.no_grad():
        error = float((found - layer(x)).abs().max())
    return {
        "seconds": round(seconds, 3),
        "degree": encrypted.parameters.degree,
        "scale_bits": encrypted.parameters.scale_bits,
        "largest_error": error,
        "rotations_with_keys": len(encrypted.circuit.rotations()),
    }


def vectors(features: int, tokens: int, sample: int) -> dict[str, Any]:
    """Seconds of `CKKSVector.mm` for all tokens, from a sample of them, in the same ring."""
    import tenseal

    torch.manual_seed(0)
    weight, x = torch.randn(features, features), torch.randn(sample, features)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[52, 40, 52], n_threads=1)
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    encrypted = [tenseal.ckks_vector(context, row.tolist()) for row in x]
    matrix = weight.tolist()
    started = time.perf_counter()
    for vector in encrypted:
        vector.mm(matrix)
    taken = time.perf_counter() - started
    return {"seconds": round(taken * tokens / sample, 3), "sample": sample, "seconds_of_sample": round(taken, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.he", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--sample", type=int, default=4, help="tokens that TenSEAL is timed on")
    options = parser.parse_args()
    ours = packed(options.features, options.tokens)
    theirs = vectors(options.features, options.tokens, options.sample)
    found = {
        "workload": f"linear {options.features} x {options.features}, {options.tokens} tokens",
        "packed": ours,
        "tenseal_mm": theirs,
        "ratio": round(theirs["seconds"] / ours["seconds"], 1),
        **provenance(),
    }
    print(json_line(found))


if __name__ == "__main__":
    main()
