"""Data: what a config needs, and whether it is there."""

from .check import check_data, leaf_datasets, missing_data

__all__ = ['check_data', 'leaf_datasets', 'missing_data']
