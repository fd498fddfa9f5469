"""A BERT encoder on CrypTen's tensors, as CrypTen's own functions compute it.

`w` maps names to MPCTensors; weights of linear layers are transposed already. B batch, L tokens, H hidden, N heads,
D = H / N.
"""

import math
from typing import Any


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
