# SPDX-License-Identifier: Apache-2.0
"""Load classifiers of other code into whole models."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..checkpoints.classifier import of_whole_model


class ForeignClassifierHook(Hook):
    """Let a runner load classifiers of other code, such as released ones, as they are.

    :func:`acmix_mm.checkpoints.classifier.of_whole_model` says under which names. The tools of this
    project register it.
    """

    priority = 'VERY_HIGH'  # other hooks, such as EMAHook, read the entry 'state_dict'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the weights of the whole model where mmengine looks for them."""
        weights = of_whole_model(checkpoint)
        if weights is not checkpoint:
            checkpoint['state_dict'] = weights
