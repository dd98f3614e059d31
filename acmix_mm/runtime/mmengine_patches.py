# SPDX-License-Identifier: Apache-2.0
"""Workarounds for mmengine, each with its reason.

Our own tools apply them when they build a runner. Importing acmix-mm does not apply them; other
programs can call :func:`patch_mmengine`.
"""

import hashlib
import os
import sys
from inspect import getsource
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine import _strategy
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader

from ..checkpoints.files import read_checkpoint
from .checkpoint_loader import load_checkpoints_safely
from .saving import save_checkpoints_safely


def resume_sharded_optimizers() -> None:
    """Let mmengine's FSDP strategy resume.

    mmengine passes ``optim`` and ``optim_state_dict`` to torch by position, and torch has changed
    the order of these arguments. If mmengine's method passes them by name, it is not replaced.
    """
    strategy = getattr(_strategy, 'FSDPStrategy', None)  # None if torch has no distributed package
    if strategy is None or 'optim_state_dict=' in getsource(strategy.load_optim_state_dict):
        return
    strategy.load_optim_state_dict = _load_sharded_optimizer


def _load_sharded_optimizer(strategy: Any, state_dict: dict) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    shard = FullyShardedDataParallel.optim_state_dict_to_load(
        model=strategy.model,
        optim=strategy.optim_wrapper.optimizer,
        optim_state_dict=state_dict,
    )
    strategy.optim_wrapper.load_state_dict(shard)


def load_safetensors() -> None:
    """Let mmengine load safetensors files, local ones and downloads, where it takes checkpoints."""
    CheckpointLoader.register_scheme(_LOCAL_SAFETENSORS, load_from_local_safetensors, force=True)
    CheckpointLoader.register_scheme(_SAFETENSORS_URL, load_from_http_safetensors, force=True)


# mmengine matches these expressions against the beginning of an address, the second before its own
# 'http://' and 'https://'. Addresses with another scheme, such as s3://bucket/x.safetensors, match
# neither and keep their own loaders.
_LOCAL_SAFETENSORS = r'(?!\w[\w+.-]+:).*\.safetensors$'
_SAFETENSORS_URL = r'https?://[^?#]*\.safetensors(\?|#|$)'


# mmengine's log names a loader by its name without 'load_from_'.
def load_from_local_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a file, whose path may begin with ``~``."""
    checkpoint = read_checkpoint(os.path.expanduser(filename))
    if map_location is not None:
        state_dict = checkpoint['state_dict']
        checkpoint['state_dict'] = {k: v.to(map_location) for k, v in state_dict.items()}
    return checkpoint


def load_from_http_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Download to torch's cache, as mmengine does: the first process before the others."""
    # Many files of a hub have one name, such as model.safetensors.
    digest = hashlib.sha256(filename.encode()).hexdigest()[:8]
    name = f'{digest}-{Path(urlparse(filename).path).name}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not is_main_process():
        barrier()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(path), progress=sys.stderr.isatty())
    if is_main_process():
        barrier()
    return load_from_local_safetensors(str(path), map_location)


def patch_mmengine() -> None:
    """Apply all workarounds to mmengine in this process. Calling it again has no effect."""
    load_checkpoints_safely()
    save_checkpoints_safely()
    resume_sharded_optimizers()
    load_safetensors()
