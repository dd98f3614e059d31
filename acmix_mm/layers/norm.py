# SPDX-License-Identifier: Apache-2.0
"""Norms by their configs."""

from torch import nn

from .types import Config


def build_norm(norm_cfg: Config, channels: int) -> nn.Module:
    """Build a norm from a config such as ``dict(type='BN')``, by mmcv.

    mmcv is imported here, not with the layers: layers without norms need torch alone.

    Args:
        norm_cfg: Config of the norm.
        channels: Number of channels.

    Examples:
        >>> build_norm(dict(type='BN'), 4).num_features
        4
    """
    from mmcv.cnn import build_norm_layer

    return build_norm_layer(norm_cfg, channels)[1]
