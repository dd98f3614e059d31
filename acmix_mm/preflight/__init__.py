# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run needs (libraries, data, weights), made before anything is built."""
