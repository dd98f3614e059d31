# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint to the format of acmix-mm.

    python tools/checkpoints/convert.py IN OUT [--classifier]

IN may be a released ResNet- or Swin-ACmix classifier, or a plain ResNet, Swin, PVT or SAN. Code in
the file is not run. OUT is a .pth or a .safetensors file with the weights of the backbone;
with --classifier, those of the whole model of a config of configs/imagenet. The tool prints which
entries it renamed, dropped and did not convert. For any other file it exits with status 1 and
writes nothing.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from acmix_mm.checkpoints import FAMILIES, backbone_part, identify, unwrap
from acmix_mm.checkpoints.classifier import head_names
from acmix_mm.checkpoints.files import read_checkpoint, write_checkpoint
from acmix_mm.version import __version__


def main(argv: list[str] | None = None) -> None:
    """Convert one checkpoint file."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN')
    parser.add_argument('target', metavar='OUT')
    parser.add_argument(
        '--classifier', action='store_true', help='keep the head, under its names in mmpretrain'
    )
    args = parser.parse_args(argv)
    try:
        whole = unwrap(read_checkpoint(args.source), args.source)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    head = head_names(whole) if args.classifier else {}
    if args.classifier and not head:
        sys.exit(
            f'{args.source} has no head that --classifier could keep: a linear layer, fc or head, '
            'of the mean of the last map.'
        )
    state_dict, outside = backbone_part(
        {name: tensor for name, tensor in whole.items() if name not in head}
    )
    found = identify(state_dict)
    if found is None:
        known = '\n'.join(f'  {fmt.name}' for family in FAMILIES.values() for fmt in family.formats)
        sys.exit(
            f'{args.source} has an unknown format ({len(state_dict)} entries, such as '
            f'{next(iter(state_dict))!r}). Nothing was written. Known formats:\n{known}'
        )
    family, fmt = found
    try:
        conversion = fmt.convert(state_dict)
    except ValueError as error:
        sys.exit(f'{args.source} cannot be converted: {error}')
    print(f'{args.source}: {fmt.name}, for {family.name}')
    prefix = 'backbone.' if args.classifier else ''
    weights = {prefix + name: tensor for name, tensor in conversion.state_dict.items()}
    weights |= {ours: whole[theirs] for theirs, ours in head.items()}
    renamed = {theirs: prefix + ours for theirs, ours in conversion.renamed.items()} | head
    for theirs, ours in renamed.items():
        print(f'  {theirs} -> {ours}')
    for theirs, reason in conversion.dropped.items():
        print(f'  {theirs} dropped: {reason}')
    for theirs in outside:
        print(f'  {theirs} dropped: not part of the backbone')
    for theirs in conversion.unknown:
        print(f'  {theirs} not converted: unknown name')
    meta = dict(acmix_mm_version=__version__, backbone=family.name, converted_from=fmt.name)
    try:
        target = write_checkpoint(args.target, weights, meta)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(
        f'{target}: {len(weights)} entries from {len(renamed)}; '
        f'{len(conversion.dropped) + len(outside)} dropped, {len(conversion.unknown)} unknown'
    )


if __name__ == '__main__':
    main()
