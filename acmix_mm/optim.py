# SPDX-License-Identifier: Apache-2.0
"""Which parameters decay: an optimizer constructor that knows the layers."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ACmixOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's optimizer constructor without weight decay on alpha, beta and their like.

    It takes the arguments of :class:`mmengine.optim.DefaultOptimWrapperConstructor` and differs
    from it in three ways:

    * The parameters that a module names in its attribute ``no_weight_decay`` do not decay: alpha
      and beta of the ACmix layers, biases of their fully connected layers, tables of relative
      positions and position embeddings.
    * ``norm_decay_mult`` and ``bias_decay_mult`` also hold for parameters that a key of
      ``custom_keys`` selects, unless that key sets ``decay_mult``. So ``'backbone':
      dict(lr_mult=0.1)`` changes the learning rate of a backbone and nothing else.
    * Keys of ``custom_keys`` match the names that parameters have without FSDP.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options for single parameters. Default: None.

    Examples:
        >>> from mmengine.optim import build_optim_wrapper
        >>> from acmix_mm.layers import ACmix
        >>> optimizer = dict(type='SGD', lr=0.1, weight_decay=1e-4)
        >>> cfg = dict(constructor='ACmixOptimWrapperConstructor', optimizer=optimizer)
        >>> layer = ACmix(8, 8)
        >>> groups = build_optim_wrapper(layer, cfg).optimizer.param_groups
        >>> [group['weight_decay'] for group in groups if group['params'][0] is layer.mix.alpha]
        [0.0]
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # mmengine gives every parameter a group of its own only if there are such options.
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: Any = None
    ) -> None:
        """Add a group for each parameter of a module and its children, see the base class.

        Args:
            params: Groups so far, changed in place.
            module: Module whose parameters are added.
            prefix: Name of the module.
            is_dcn_module: Whether the module is part of a deformable convolution.
        """
        start = len(params)
        prefix = prefix.replace('_fsdp_wrapped_module', '').replace('..', '.').strip('.')
        super().add_params(params, module, prefix, is_dcn_module)
        if self.base_wd is None:
            return
        own = {id(param): name for name, param in module.named_parameters(recurse=False)}
        for group in params[start:]:
            name = own.get(id(group['params'][0]))
            if name is not None:
                decay_mult = self._decay_mult(module, name)
                if decay_mult is not None and 'decay_mult' not in group:
                    group['weight_decay'] = self.base_wd * decay_mult

    def _decay_mult(self, module: nn.Module, name: str) -> float | None:
        """Return the factor of the weight decay of a module's own parameter, None for no rule."""
        if name in getattr(module, 'no_weight_decay', ()):
            return 0.0
        if isinstance(module, _BatchNorm | _InstanceNorm | GroupNorm | LayerNorm):
            return self.paramwise_cfg.get('norm_decay_mult')
        return self.paramwise_cfg.get('bias_decay_mult') if name == 'bias' else None
