"""The documentation is true: its Python blocks run, its commands parse, its paths exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from acmix_mm.registry import MODELS
from benchmarks.run import parse_args as parse_benchmark_args

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted(ROOT.glob('docs/**/*.md')),
    *sorted(ROOT.glob('configs/**/README.md')),
]
FOLDERS = '|'.join(
    ['acmix_mm', 'benchmarks', 'configs', 'docs', 'requirements', 'tests', 'tools', r'\.github']
)


def blocks(language: str) -> list:
    """The code blocks in a language, each with its page as its id."""
    return [
        pytest.param(block, id=f'{page.relative_to(ROOT)}-{i}')
        for page in PAGES
        for i, block in enumerate(
            re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), re.M | re.S)
        )
    ]


def commands() -> list:
    """Commands of the shell blocks, as lists of words without variables before the program."""
    found = []
    for block in blocks('bash'):
        for line in block.values[0].replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r'[A-Z_]+=', words[0]):
                words.pop(0)
            if words:
                found.append(pytest.param(words, id=f'{block.id}: {" ".join(words[:3])}'))
    return found


def test_blocks_and_commands_were_found():
    assert len(blocks('python')) >= 8
    assert len(commands()) >= 30


@pytest.mark.parametrize('block', blocks('python'))
def test_block_runs(block, tmp_path):
    if '_base_' not in block:
        exec(compile(block, '<documentation>', 'exec'), {})
        return
    (tmp_path / 'config.py').write_text(block)
    cfg = Config.fromfile(tmp_path / 'config.py')
    backbone = cfg.model.backbone
    backbone.init_cfg = None  # pretrained weights are not available to the tests
    backbone.setdefault('_scope_', cfg.default_scope)
    model = MODELS.build(backbone)
    assert model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize('words', commands())
def test_command_parses(words, tool):
    program, *arguments = words
    if program == 'python':
        program, *arguments = arguments
    if program.startswith(('tools/', 'benchmarks/', 'configs/')):
        assert (ROOT / program).is_file()
    for path in arguments:
        if path.startswith(('tools/', 'configs/')):
            assert (ROOT / path).is_file()
    if program == 'make':
        targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.M)
        assert arguments[0] in targets
    elif arguments[:1] == ['benchmarks.run']:
        parse_benchmark_args(arguments[1:])
    elif program == 'tools/dist_train.sh':
        config, gpus, *options = arguments
        assert gpus.isdigit()
        tool('train.py').parse_args([config, *options])
    elif program.startswith('tools/') and program.endswith('.py'):
        script = tool(program.removeprefix('tools/'))
        if hasattr(script, 'parse_args'):
            script.parse_args(arguments)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r'\]\(([^)#]+)', text):
        if '://' not in target:
            assert (page.parent / target).exists(), f'{page} links to {target}'
    for path in re.findall(rf'`((?:{FOLDERS})/[\w./-]+)[ `]', text):
        if not path.startswith('tools/dataset_converters/'):  # those are mmseg's
            assert (ROOT / path).exists(), f'{page} mentions {path}'
