"""The registries that acmix-mm registers in, chosen here and nowhere else.

They are mmengine's root registries. A class registered in a root registry is found, by its plain
name, from the registries of mmdet, mmseg and mmpretrain alike.
"""

from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS, VISUALIZERS

__all__ = ['DATASETS', 'HOOKS', 'MODELS', 'TRANSFORMS', 'VISUALIZERS']
