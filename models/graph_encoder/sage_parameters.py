r"""What a trained `sage` encoder consists of: two layers of mean GraphSAGE over users, items and memories.

Hamilton et al. 2017 (arXiv:1706.02216), one convolution per type of edge. For a user u with ratings N(u),
a(.) the edge weight, d_u = sum of a over N(u), d_j likewise for items, r(x) = max(x, 0), rows as vectors:

    x_j    = id_source[j] + f_j @ feature_source          an item's input, as is y_j
    y_j    = id_target[j] + f_j @ feature_target
    u1_u   = r(sum_j a_uj x_j / d_u @ user_neighbours + user_bias)              items to users
    S_j    = sum_u a_uj u1_u                                                    maintained in float64
    i_j    = r(x_j @ item_root + S_j / d_j @ item_neighbours + item_bias)       users to items
    z_j    = x_j @ source_root + i_j @ source_hidden      source vector
    item_j = y_j + i_j @ target_hidden                    target vector
    bias_j = id_bias[j] + f_j @ feature_bias
    user_u = sum_j a_uj z_j / d_u + u1_u @ user_root      from items and ratings alone
           + g_u @ user_attributes + mean over own memories m of memory_m @ memory_gate
    score(u, j) = user_u . item_j + bias_j

The mean of nothing is zero. A memory m takes part as an item that nobody has rated, its text title and text,
f_m its feature row, joined by what it is related to:

    x_m      = f_m @ feature_source
    c_m      = x_m @ memory_root + mean of x_j over related items @ memory_items
             + mean of x_k over related memories of the same owner @ memory_memories
    memory_m = c_m @ source_root + r(c_m @ item_root + item_bias) @ source_hidden

so memory_m . item_j says how near an item is to a memory. Memories and users' attributes end in their
owner's vector: nothing that items or other users hold reads them, in inference and in training alike (see
`private_fitting.py`). Every live memory counts, whenever it is valid: no vector changes without a
write.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.graph_encoder.parameters import EncoderParameters, Float32

UNTRAINED_GATE = 0.25
"""What a memory weighs beside the mean of a user's ratings where no memory took part in training."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SageParameters(EncoderParameters):
    """Parameters of the `sage` encoder."""

    user_neighbours: Float32  # [D, D]
    user_bias: Float32  # [D]
    user_root: Float32  # [D, D]
    item_neighbours: Float32  # [D, D]
    item_root: Float32  # [D, D]
    item_bias: Float32  # [D]
    source_root: Float32  # [D, D]
    source_hidden: Float32  # [D, D]
    target_hidden: Float32  # [D, D]
    memory_root: Float32  # [D, D]
    memory_items: Float32  # [D, D]
    memory_memories: Float32  # [D, D]
    memory_gate: Float32  # [D, D]
