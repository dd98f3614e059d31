# SPDX-License-Identifier: Apache-2.0
"""Implementations of the operators, one file a backend; registry.py chooses between them."""
