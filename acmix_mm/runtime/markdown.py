# SPDX-License-Identifier: Apache-2.0
"""Tables and generated parts of Markdown pages."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table.

    Args:
        header: Names of the columns.
        rows: Cells of each row.

    Examples:
        >>> print(table(('model', 'AP'), [('ResNet-50', '38.0')]), end='')
        | model | AP |
        |---|---|
        | ResNet-50 | 38.0 |
    """
    head, *body = (f'| {" | ".join(cells)} |\n' for cells in (header, *rows))
    return ''.join([head, '|', '---|' * len(header), '\n', *body])


def replace_between_marks(page: str, name: str, writer: str, text: str) -> str:
    r"""Replace the part of a page that a program writes.

    Args:
        page: Text of the page.
        name: Name of the part. It lies between the lines ``<!-- name: written by writer -->`` and
            ``<!-- name: end -->``.
        writer: The program that writes it, for readers of the page.
        text: New content of the part, ending with a newline.

    Raises:
        ValueError: The page does not have each of the two lines exactly once.

    Examples:
        >>> page = '<!-- ap: written by x.py -->\nold\n<!-- ap: end -->\n'
        >>> replace_between_marks(page, 'ap', 'x.py', 'new\n').splitlines()[1]
        'new'
    """
    begin, end = f'<!-- {name}: written by {writer} -->\n', f'<!-- {name}: end -->'
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(
            f'the page must have the lines {begin.strip()!r} and {end!r} exactly once each'
        )
    before, rest = page.split(begin)
    return before + begin + text + end + rest.split(end)[1]
