"""The block that the transformer backbones are made of."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule
from torch import Tensor, nn

from .common import recompute


class TransformerBlock(BaseModule):
    """Norm and ACmix, norm and MLP, each with a shortcut.

    Args:
        attn: ACmix layer, from ``(B, H, W, C)`` to ``(B, H, W, C)``.
        embed_dims: C.
        mlp_ratio: Hidden channels of the MLP, in units of C.
        drop_rate: Dropout probability in the MLP.
        drop_path_rate: Probability of dropping a residual branch of an image.
        act_cfg: Of the MLP.
        norm_cfg: Of the norms.
        with_cp: Recompute the block in the backward pass instead of keeping its activations.
        init_cfg: Of :class:`mmengine.model.BaseModule`.
    """

    def __init__(
        self,
        attn: nn.Module,
        embed_dims: int,
        mlp_ratio: float,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = attn
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = FFN(
            embed_dims,
            int(mlp_ratio * embed_dims),
            act_cfg=act_cfg,
            ffn_drop=drop_rate,
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.with_cp and x.requires_grad:
            return recompute(self, self._forward, x)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return self.ffn(self.norm2(x), identity=x)
