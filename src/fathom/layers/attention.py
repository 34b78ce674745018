"""Self-attention and the encoder block made of it.

    SelfAttention   every token looks at every real token of its sequence, in several heads
    EncoderBlock    attention, then a two-layer network, each added to what came in, with a norm before or after it
    Packing         real tokens alone, one behind the other: layers other than attention need no padding

Source: Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin, Attention Is All You Need, 2017, which
normalises after each part; the normalisation before each part is that of Xiong et al., On Layer Normalization in the
Transformer Architecture, 2020; rotary positions are those of Su, Lu, Pan, Murtadha, Wen, Liu, RoFormer: Enhanced
Transformer with Rotary Position Embedding, 2021.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Packing:
    """Which tokens of padded sequences are real: from [B, T, …] to the N real tokens [N, …], and back.

    Args:
        real: [B, T] bool.
    """

    def __init__(self, real: Tensor) -> None:
        self.real, self.shape = real, real.shape
        self.places = real.flatten().nonzero().squeeze(1)  # [N]

    @classmethod
    def of(cls, real: Tensor) -> Packing | None:
        """Return the packing of the tokens that are real, or None where it would gain nothing.

        That is without padding; on a GPU, which would be waited for; and in a compiled graph, whose shapes may not hang
        on the data.
        """
        if real.device.type != "cpu" or torch.compiler.is_compiling() or bool(real.all()):
            return None
        return cls(real)

    def trimmed(self) -> Packing:
        """Return the packing of the same tokens without the last columns, in which no row has one."""
        width = int(self.real.any(0).nonzero().max()) + 1 if len(self.places) else 1
        return self if width == self.shape[1] else Packing(self.real[:, :width])

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, self.places)

    def pad(self, x: Tensor) -> Tensor:
        """Return the tokens at their places and zeros between them."""
        padded = x.new_zeros(self.shape.numel(), *x.shape[1:]).index_copy(0, self.places, x)
        return padded.unflatten(0, self.shape)


class SelfAttention(nn.Module):
    """Scaled dot-product attention of a sequence to itself: [B, T, D] -> [B, T, D].

    Args:
        width: D.
        num_heads: H, which divides D.
        dropout: share of attention weights dropped in training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        assert width % num_heads == 0, "heads must divide the width"
        self.num_heads, self.dropout = num_heads, dropout
        self.project_in = nn.Linear(width, 3 * width)  # queries, keys and values
        self.project_out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, visible: Tensor | None = None, turns: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Return what each token gathers.

        Args:
            x: [B, T, D], or [N, D] with a packing; so is what is returned.
            visible: true where a key may be seen, [B, 1, 1, T] or [B, 1, T, T]; each row has a true entry.
            turns: rotary angles [T, D/H/2] of `rotary_angles`, where positions are told that way.
            packing: where the N tokens stand in their sequences.
        """
        parts = self.project_in(x) if packing is None else packing.pad(self.project_in(x))  # [B, T, 3·D]
        parts = parts.unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))  # [B, H, T, D/H] each
        if turns is not None:
            query, key = rotate(query, turns), rotate(key, turns)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        found = found.transpose(1, 2).flatten(2)  # [B, T, D]
        return self.project_out(found if packing is None else packing.pack(found))


class EncoderBlock(nn.Module):
    """One layer of an encoder: [B, T, D] -> [B, T, D], or [N, D] -> [N, D] if packed.

        norm before    x = x + attention(norm(x)),  x = x + network(norm(x))
        norm after     x = norm(x + attention(x)),  x = norm(x + network(x))

    Args:
        width: D.
        num_heads: heads of the attention.
        hidden: units of the two-layer network between its layers.
        dropout: share dropped of attention weights and of what each part adds, in training.
        epsilon: what the norms add to the variance.
        norm_after: whether they stand after the parts.
        activation: of the two-layer network.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        norm_after: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.norm_after, self.activation = norm_after, activation
        self.norm_attention, self.norm_network = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attention = SelfAttention(width, num_heads, dropout)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, visible: Tensor | None = None, turns: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        if self.norm_after:
            x = self.norm_attention(x + self.dropout(self.attention(x, visible, turns, packing)))
            return self.norm_network(x + self.dropout(self.contract(self.activation(self.expand(x)))))
        x = x + self.dropout(self.attention(self.norm_attention(x), visible, turns, packing))
        hidden = self.dropout(self.activation(self.expand(self.norm_network(x))))  # [B, T, hidden]
        return x + self.dropout(self.contract(hidden))


def sinusoids(length: int, width: int) -> Tensor:
    """Return what tells a token where it stands, added to its vector: sines and cosines in turn, [T, D].

    Source: Vaswani et al., 2017, section 3.5.
    """
    angles = rotary_angles(length, width)  # [T, D / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def rotary_angles(length: int, size: int, base: float = 10_000.0) -> Tensor:
    """Return the angle by which each pair of a head's dimensions turns at each position: [T, size / 2]."""
    speed = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(torch.arange(length, dtype=torch.float64), speed).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair (i, i + size/2) of the last dimension by its position's angle: [B, H, T, size] -> the same."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # [T, size / 2]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
