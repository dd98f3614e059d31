# SPDX-License-Identifier: Apache-2.0
"""An extension of Griffe: it turns the reStructuredText of our docstrings into Markdown.

The docstrings name other objects as Sphinx, IDEs and readers of Python expect it, by roles such as
``:class:`ACmix```. They become links, or code if no API page has the object. So do tables.
"""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, NameResolutionError, Object

DOCS = Path(__file__).resolve().parents[1]
ON_PAGES = {
    name
    for page in DOCS.glob('api/*.md')
    for name in re.findall(r'^::: (\S+)', page.read_text(), re.MULTILINE)
}
ROLE = re.compile(r':(?:class|func|meth|mod|attr):`([^`<]+?)(?:\s*<([^>]+)>)?`')
TABLE = re.compile(r'^(=+(?: +=+)+)\n(.+\n)\1\n((?:.+\n)+?)\1$', re.MULTILINE)


class Markdown(Extension):
    """Rewrite the roles and the tables in the docstrings of all objects."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object, once it is known."""
        if obj.docstring is not None:
            text = TABLE.sub(_table, obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda role: _link(obj, *role.groups()), text)


def _table(table: re.Match) -> str:
    rule, header, body = table.groups()
    starts = [column.start() for column in re.finditer('=+', rule)]
    rows = [
        [row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        for row in (header + body).splitlines()
    ]
    rows.insert(1, ['---'] * len(starts))
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _link(obj: Object, text: str, target: str | None) -> str:
    name = ' '.join((target or text).split())
    shown = ' '.join(text.split()) if target else f'`{name}`'
    path = next((path for path in _paths(obj, name) if path in ON_PAGES), None)
    return f'[{shown}][{path}]' if path else shown


def _paths(obj: Object, name: str) -> list[str]:
    """Return the full paths that a name may mean in the docstring of an object."""
    package = '.'.join(obj.path.split('.')[:2])
    try:
        resolved = [obj.resolve(name)]
    except NameResolutionError:
        resolved = []
    return [name, f'{package}.{name}', *resolved]
