"""The Chinese pages keep in step with the English ones: same structure, code, numbers and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = {'README.md': 'README_zh-CN.md', 'docs/quick_start.md': 'docs/quick_start_zh-CN.md'}
BLOCK = re.compile(r'^```\w+\n.*?^```$|^    \S[^\n]*$', re.MULTILINE | re.DOTALL)


def structure(page: str) -> dict[str, list]:
    """What a translation leaves as it is."""
    text = (ROOT / page).read_text()
    blocks = [_without_comments(block) for block in BLOCK.findall(text)]
    prose = BLOCK.sub('', text)
    lines = prose.splitlines()
    return {
        'levels of headings': [line.split()[0] for line in lines if line.startswith('#')],
        'blocks of code': blocks,
        'cells of table rows': [line.count('|') for line in lines if line.startswith('|')],
        'items of lists': [line[:2] for line in lines if line.startswith('* ')],
        'inline code': sorted(re.findall(r'`[^`]+`', prose)),
        'targets of links': sorted(_targets(prose)),
        'numbers': sorted(re.findall(r'\d+(?:\.\d+)*', _without_links(prose))),
    }


def _without_comments(code: str) -> str:
    return '\n'.join(re.sub(r'\s+#\s.*', '', line) for line in code.splitlines())


def _targets(prose: str) -> list[str]:
    targets = re.findall(r'\]\(([^)]+)\)', prose)
    here = [target for target in targets if not target.startswith('#')]
    # A page and its translation are linked by each other, and by other translated pages.
    return [target.replace('_zh-CN.md', '.md') for target in here if 'README' not in target]


def _without_links(prose: str) -> str:
    return re.sub(r'\]\([^)]+\)|`[^`]+`', '', prose)


@pytest.mark.parametrize(('english', 'chinese'), PAGES.items())
def test_translation_is_in_step(english, chinese):
    assert structure(chinese) == structure(english)


@pytest.mark.parametrize('chinese', PAGES.values())
def test_headings_that_are_linked_exist(chinese):
    text = (ROOT / chinese).read_text()
    anchors = {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    }
    linked = re.findall(r'\]\(#([^)]+)\)', text)
    assert set(linked) <= anchors, linked


@pytest.mark.parametrize('chinese', PAGES.values())
def test_lines_end_where_a_space_may_be(chinese):
    """Browsers show the end of a line as a space, which Chinese does not have between words."""
    text = BLOCK.sub('', (ROOT / chinese).read_text())
    assert re.findall(r'.*[\u4e00-\u9fff]\n *\[?[\u4e00-\u9fff].*', text) == []


@pytest.mark.parametrize(
    ('kind', 'old', 'new'),
    [
        ('levels of headings', '## ', '### '),
        ('blocks of code', 'make demo', 'make all'),
        ('cells of table rows', '|---|', '|'),
        ('items of lists', '\n* ', '\n'),
        ('inline code', '`alpha`', 'alpha'),
        ('targets of links', '](docs/', '](doc/'),
        ('numbers', '12 ', '13 '),
    ],
)
def test_a_difference_is_seen(tmp_path, monkeypatch, kind, old, new):
    text = (ROOT / 'README.md').read_text().replace('alpha and', '`alpha` and')
    for name, content in (('a.md', text), ('b.md', text.replace(old, new))):
        (tmp_path / name).write_text(content)
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    assert structure('a.md')[kind] != structure('b.md')[kind]
