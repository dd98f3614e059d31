# SPDX-License-Identifier: Apache-2.0
"""Measurements of ACmix. Run them from the root of the repository; they are not installed."""
