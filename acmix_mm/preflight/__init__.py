# SPDX-License-Identifier: Apache-2.0
"""What a run needs, checked before anything is built: libraries, data and weights."""
