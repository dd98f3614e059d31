# SPDX-License-Identifier: Apache-2.0
"""Publish a checkpoint: keep only its weights, and add a hash to the name of the file.

    python tools/checkpoints/publish.py IN OUT

IN is a checkpoint of a training run; code in it is not run. The states of optimizer and schedulers
and the logs are removed. OUT is a .pth or a .safetensors file. The first 8 hex digits of its
SHA-256 are added to its name: swin.pth becomes swin-1a2b3c4d.pth.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from torch import Tensor

from acmix_mm.checkpoints import unwrap
from acmix_mm.checkpoints.files import published_meta, read_checkpoint, write_checkpoint


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a tensor are finite numbers."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def main(argv: list[str] | None = None) -> Path:
    """Publish one checkpoint file, and return the path of the new file."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN')
    parser.add_argument('target', metavar='OUT')
    args = parser.parse_args(argv)
    try:
        checkpoint = read_checkpoint(args.source)
        state_dict = unwrap(checkpoint, args.source)
        target = write_checkpoint(args.target, state_dict, published_meta(checkpoint), hashed=True)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    strange = [name for name, tensor in state_dict.items() if not is_finite(tensor)]
    if strange:
        print(f'Warning: {len(strange)} entries have NaN or infinite values, such as {strange[0]}.')
    before, after = (Path(file).stat().st_size / 2**20 for file in (args.source, target))
    print(f'{target}: {len(state_dict)} entries, {after:.1f} MiB ({args.source}: {before:.1f} MiB)')
    return target


if __name__ == '__main__':
    main()
