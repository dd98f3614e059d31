# SPDX-License-Identifier: Apache-2.0
"""Checks and measurements of acmix-mm on a CUDA GPU, run by ``python -m benchmarks.check_gpu``."""
