"""What models cost."""

from .complexity import Complexity, measure_complexity, measure_parts

__all__ = ['Complexity', 'measure_complexity', 'measure_parts']
