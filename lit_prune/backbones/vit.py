"""Vision transformers.

Source: Dosovitskiy et al. 2020, "An image is worth 16x16 words", arXiv 2010.11929.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_prune.errors import LitPruneError

__all__ = ["ViTTiny"]

_WIDTH, _DEPTH, _HEADS, _RATIO = 192, 12, 3, 4


class ViTTiny(nn.Module):
    """The tiny transformer for images of 32x32 in patches of 4x4: 5,319,552 prunable connections.

    Width 192, depth 12, 3 heads and a hidden layer of 4 times the width, the sizes that Touvron et
    al. 2021 (DeiT, arXiv 2012.12877) call tiny; patches of 4 are what is usual on CIFAR. A class
    token, learned positions, and norms before attention and MLP, as in the paper.

    Args:
        num_classes: the number of outputs.
        in_channels: the number of input channels.
        image_size: height and width of the images.
        patch_size: height and width of a patch, which divides ``image_size``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise LitPruneError(f"patch_size={patch_size} does not divide image_size={image_size}")
        tokens = (image_size // patch_size) ** 2 + 1
        self.patches = nn.Conv2d(in_channels, _WIDTH, patch_size, patch_size)
        self.token = nn.Parameter(torch.empty(1, 1, _WIDTH))
        self.positions = nn.Parameter(torch.empty(1, tokens, _WIDTH))
        self.blocks = nn.Sequential(*(_Block() for _ in range(_DEPTH)))
        self.norm = nn.LayerNorm(_WIDTH, eps=1e-6)
        self.head = nn.Linear(_WIDTH, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as DeiT does.

        Weights of linear layers, the class token and the positions are normal with standard
        deviation 0.02, biases zero; norms and the patches' convolution start as PyTorch's do.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.LayerNorm):
                module.reset_parameters()
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, image_size, image_size)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class _Block(nn.Module):
    """Attention and an MLP, each beside an identity and after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH, eps=1e-6)
        self.attention = _Attention()
        self.norm2 = nn.LayerNorm(_WIDTH, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(_WIDTH, _RATIO * _WIDTH), nn.GELU(), nn.Linear(_RATIO * _WIDTH, _WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        # (N, tokens, 3 * width) -> three times (N, heads, tokens, width / heads).
        q, k, v = self.qkv(x).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))
