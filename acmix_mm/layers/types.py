# SPDX-License-Identifier: Apache-2.0
"""Types of arguments that many layers and backbones share."""

from collections.abc import Sequence

#: Config of one part of a model, ``dict(type=..., ...)``, or arguments of a layer.
Config = dict
OptConfig = dict | None
#: One config, a list of them, or none: what ``init_cfg`` takes.
OptMultiConfig = dict | list[dict] | None
#: ``'learned'``, ``'complementary'`` or a pair of fixed numbers, see :class:`PathMix`.
PathWeights = str | Sequence[float]
