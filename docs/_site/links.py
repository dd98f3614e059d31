# SPDX-License-Identifier: Apache-2.0
"""A hook of MkDocs: links that are right for readers of the repository work in the site, too.

MkDocs knows the files of ``docs/`` only. This hook adds the pages outside of it, such as
``CONTRIBUTING.md``, under the paths that they have in the repository. Links to other files of the
repository lead to the address in the environment variable ``REPOSITORY_URL``, such as
``https://github.com/OWNER/acmix-mm``, and are plain text if it is not set.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = (
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'SECURITY.md',
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/**/README.md')),
)
LINK = re.compile(r'(?<!!)\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of ``docs/``."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to files that are elsewhere in the site, or not in it.

    A link to a file that does not exist stays as it is: MkDocs warns of it.
    """
    here = page.file.src_uri
    folder = posixpath.dirname(here if here in OUTSIDE else f'docs/{here}')

    def rewrite(link: re.Match) -> str:
        text, target, anchor = link.group(1, 2, 3)
        path = posixpath.normpath(posixpath.join(folder, target))
        if '://' in target or not (ROOT / path).exists():
            return link[0]
        if path.startswith('docs/') or path in OUTSIDE:
            in_site = posixpath.relpath(path.removeprefix('docs/'), posixpath.dirname(here) or '.')
            return f'[{text}]({in_site}{anchor or ""})'
        repository = os.environ.get('REPOSITORY_URL')
        return f'[{text}]({repository}/blob/main/{path}{anchor or ""})' if repository else text

    return LINK.sub(rewrite, markdown)
