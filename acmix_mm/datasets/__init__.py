"""Data: what a config needs, whether it is there, and whether it can be used."""

from .check import check_data, leaf_datasets, missing_data
from .inspection import Report, distinct_datasets, inspect_dataset

__all__ = [
    'Report',
    'check_data',
    'distinct_datasets',
    'inspect_dataset',
    'leaf_datasets',
    'missing_data',
]
