"""Mends of mmengine, each with its reason; applied when acmix-mm is imported."""

from functools import wraps
from typing import Any

import numpy as np
import torch
from mmengine import _strategy
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from packaging.version import Version

from .dependencies import MMSEG, installed_distributions


def register_config_names() -> None:
    """Makes mmengine find the configs of `acmix_mm::...` and, with the OneDL fork, `mmseg::...`.

    mmengine knows a fixed list of packages, and which distribution installs each. The fork's name
    for mmseg's is another; under the module's own name, mmengine finds it.
    """
    MODULE2PACKAGE['acmix_mm'] = 'acmix_mm'
    if 'onedl-mmsegmentation' in installed_distributions(MMSEG):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def allow_checkpoint_contents() -> None:
    """Lets upstream's mmengine load its own checkpoints with torch >= 2.6.

    From that version on, `torch.load` takes nothing but tensors and plain containers. The logs in
    a checkpoint hold more: mmengine's history buffers and the numpy values in them. Only while
    mmengine loads a checkpoint are they let through. The OneDL fork does so itself.
    """
    if hasattr(checkpoint, 'get_torch_safe_globals') or Version(torch.__version__).release < (2, 6):
        return
    loaders = {
        '': checkpoint.load_from_local,
        ('http://', 'https://'): checkpoint.load_from_http,
    }
    for prefixes, loader in loaders.items():
        CheckpointLoader.register_scheme(prefixes, _with_safe_globals(loader), force=True)


def _with_safe_globals(loader: Any) -> Any:
    @wraps(loader)  # mmengine's log names the loader
    def load(filename: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(_safe_globals()):
            return loader(filename, map_location=map_location)

    return load


def _safe_globals() -> list[Any]:
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    # numpy 2 moved both; a checkpoint holds the names of the numpy that it was written with.
    functions = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')
    ]
    dtypes = [type(np.dtype(name)) for name in ('float32', 'float64', 'int64')]
    # A history buffer refers to its methods, which pickle does through getattr.
    return [HistoryBuffer, getattr, np.ndarray, np.dtype, *dtypes, *functions]


def resume_sharded_optimizers() -> None:
    """Lets mmengine's FSDP strategy resume.

    It passes by position what newer versions of torch take in another order.
    """
    if hasattr(_strategy, 'FSDPStrategy'):  # not where torch was built without its `distributed`
        _strategy.FSDPStrategy.load_optim_state_dict = _load_sharded_optimizer


def _load_sharded_optimizer(strategy: Any, state_dict: dict) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    shard = FullyShardedDataParallel.optim_state_dict_to_load(
        model=strategy.model,
        optim=strategy.optim_wrapper.optimizer,
        optim_state_dict=state_dict,
    )
    strategy.optim_wrapper.load_state_dict(shard)


def adapt_mmengine() -> None:
    """Applies all of the mends."""
    register_config_names()
    allow_checkpoint_contents()
    resume_sharded_optimizers()
