"""Operators that are recorded as the operators that they are made of, so that each has its own channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx


def _shape(x: Any) -> tuple[int, ...]:
    """Return a shape without recording that it was read."""
    with torch._C.DisableTorchFunction():
        return tuple((x.node.meta["val"] if isinstance(x, fx.Proxy) else x).shape)


def multi_head_attention(  # noqa: D417 - torch's arguments
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """`F.multi_head_attention_forward` in single operators, up to rounding; the scale is a number.

    The heads are few and fixed, so what grows inside is the width of each, apart from the width of the stream.

    Args:
        query, key, value: (L, N, E), (S, N, E), (S, N, E), and the others as torch has them.

    Returns:
        (L, N, E), and the weights (N, L, S), (N, heads, L, S) or None; NotImplemented for keys that torch adds
        (`bias_k`, `add_zero_attn`, static ones) and for samples without a batch.

    Raises:
        RuntimeError: The channels are not the `embed_dim` that the module has.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.2.2.
    """
    added = any(x is not None for x in (bias_k, bias_v, static_k, static_v)) or add_zero_attn
    if added or len(_shape(query)) != 3:
        return NotImplemented
    separate = (w for w in (q_proj_weight, k_proj_weight, v_proj_weight) if w is not None)
    rows = [3 * _shape(w)[0] for w in separate]
    if in_proj_weight is not None:
        rows = [_shape(in_proj_weight)[0]]
    if any(n != 3 * embed_dim_to_check for n in rows) or _shape(query)[-1] != embed_dim_to_check:
        raise RuntimeError(f"expected {embed_dim_to_check} channels")
    scale = (embed_dim_to_check // num_heads) ** -0.5
    if in_proj_weight is not None and query is key is value:
        packed: Any = F.linear(query, in_proj_weight, in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, -1)).unbind(-2)
    else:
        weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
        if in_proj_weight is not None:
            weights = in_proj_weight.chunk(3)
        biases: Any = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x, w, b) for x, w, b in inputs)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    mask: Any = attn_mask
    if mask is not None and len(_shape(mask)) == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None]
        mask = padding if mask is None else mask + padding
    shares: Any = None
    if need_weights or dropout_p > 0:
        scores = (q * scale) @ k.transpose(-2, -1)
        shares = (scores if mask is None else scores + mask).softmax(-1)
        if dropout_p > 0:
            shares = F.dropout(shares, dropout_p, training)
        y = shares @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    y = F.linear(y.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return y, None
    return y, shares.mean(1) if average_attn_weights else shares


WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention
}
