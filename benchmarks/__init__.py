# SPDX-License-Identifier: Apache-2.0
"""Measurements of ACmix; run from the root of the repository, not part of the package."""
