# SPDX-License-Identifier: Apache-2.0
"""An optimizer constructor that knows which parameters of ACmix should not decay."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .registry import OPTIM_WRAPPER_CONSTRUCTORS

# Modules that FSDP and activation checkpointing put between a module and its parent.
_WRAPPERS = ('_fsdp_wrapped_module', '_checkpoint_wrapped_module')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ACmixOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's optimizer constructor without weight decay on alpha, beta and similar parameters.

    It takes the arguments of :class:`mmengine.optim.DefaultOptimWrapperConstructor` and differs
    from it in three ways:

    * The parameters that a module lists in its attribute ``no_weight_decay`` do not decay: alpha
      and beta of the ACmix layers, biases of their fully connected layers, tables of relative
      positions and position embeddings.
    * ``norm_decay_mult``, ``bias_decay_mult``, ``dwconv_decay_mult`` and ``flat_decay_mult`` also
      apply to parameters that a key of ``custom_keys`` matches. So ``'backbone':
      dict(lr_mult=0.1)`` changes the learning rate of a backbone and nothing else. The key can set
      these options itself, for the parameters that it matches.
    * Keys of ``custom_keys`` are matched against the names that parameters have without FSDP and
      activation checkpointing.

    A key of ``custom_keys`` that sets ``decay_mult`` overrides the first two rules.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: Options for individual parameters. Default: None.

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
        # mmengine calls add_params only if there are options for individual parameters.
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: Any = None
    ) -> None:
        """Add a parameter group for each parameter of a module and of its children.

        Args:
            params: Parameter groups so far, extended in place.
            module: Module whose parameters are added.
            prefix: Name of the module in the model.
            is_dcn_module: Whether the module is part of a deformable convolution.
        """
        start = len(params)
        prefix = '.'.join(name for name in prefix.split('.') if name not in _WRAPPERS)
        super().add_params(params, module, prefix, is_dcn_module)
        # The calls for the children have set the groups of their parameters.
        own = {id(param): name for name, param in module.named_parameters(recurse=False)}
        for group in params[start:]:
            name = own.get(id(group['params'][0]))
            if name is None or 'decay_mult' in group:
                continue
            decay = self._weight_decay(group, module, name, is_dcn_module)
            if decay is not None and decay != group.get('weight_decay'):
                group['weight_decay'] = decay
                full_name = f'{prefix}.{name}'.lstrip('.')
                print_log(f'paramwise_options -- {full_name}:weight_decay={decay}', 'current')

    def _weight_decay(
        self, group: dict, module: nn.Module, name: str, is_dcn_module: Any
    ) -> float | None:
        """Return the weight decay of a parameter, or None if that of the optimizer applies."""
        exempt = getattr(module, 'no_weight_decay', ())
        if not callable(exempt) and name in exempt:  # timm's models have a method of this name
            return 0.0
        if self.base_wd is None:
            return None
        # The rules of mmengine, which skips them for parameters that match a key of custom_keys.
        is_norm = isinstance(module, _BatchNorm | _InstanceNorm | GroupNorm | LayerNorm)
        is_depthwise = isinstance(module, nn.Conv2d) and module.in_channels == module.groups
        rules = (
            ('norm_decay_mult', is_norm),
            ('bias_decay_mult', name == 'bias' and not is_dcn_module),
            ('dwconv_decay_mult', is_depthwise),
            ('flat_decay_mult', group['params'][0].ndim == 1 and not is_dcn_module),
        )
        for rule, applies in rules:
            factor = group.get(rule, self.paramwise_cfg.get(rule))  # mmengine adds a key's options
            if applies and factor is not None:
                return self.base_wd * factor
        return None
