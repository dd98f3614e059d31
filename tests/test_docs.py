"""The documentation is true: its Python blocks run, its commands parse, its paths exist."""

import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from acmix_mm.registry import MODELS
from benchmarks.run import parse_args as parse_benchmark_args

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / 'README.md',
    ROOT / 'README_zh-CN.md',
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'SECURITY.md',
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
    assert len(blocks('python')) >= 25
    assert len(commands()) >= 60


@pytest.mark.parametrize('block', blocks('python'))
def test_block_runs(block, tmp_path, monkeypatch):
    # tests/tools/test_infer.py runs inferencers; here they have no checkpoint.
    for name in re.findall(r'^from (\w+\.apis import \w+Inferencer)\b', block, re.M):
        target = name.replace(' import ', '.')
        monkeypatch.setattr(target, create_autospec(pkgutil.resolve_name(target)))
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


def test_every_page_is_in_the_navigation():
    _, nav = (ROOT / 'mkdocs.yml').read_text().split('\nnav:\n')
    listed = re.findall(r'^ +- (?:.+: )?(\S+\.md)$', nav, re.M)
    in_docs = [str(page.relative_to(ROOT / 'docs')) for page in ROOT.glob('docs/**/*.md')]
    outside = ['CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md']
    outside += [str(page.relative_to(ROOT)) for page in ROOT.glob('configs/**/README.md')]
    assert sorted(listed) == sorted(in_docs + outside)


API_PAGES = '\n'.join(page.read_text() for page in sorted(ROOT.glob('docs/api/*.md')))
ON_API_PAGES = re.findall(r'^::: (\S+)$', API_PAGES, re.M)


def named(path):
    """Return the object that a path on an API page names."""
    module, _, name = path.rpartition('.')
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    'package', ['layers', 'ops', 'backbones', 'hooks', 'checkpoints', 'runtime']
)
def test_api_pages_have_every_public_name(package):
    module = importlib.import_module(f'acmix_mm.{package}')
    shown = [named(path) for path in ON_API_PAGES]
    missing = [
        name
        for name in module.__all__
        # What is no class and no function has no docstring to show: the text of a page names it.
        if getattr(module, name) not in shown and f'`{module.__name__}.{name}`' not in API_PAGES
    ]
    assert missing == []


@pytest.mark.parametrize('path', ON_API_PAGES)
def test_api_pages_have_documented_objects_only(path):
    assert named(path).__doc__


def test_fine_tuning_starts_from_the_plain_detector(tool, shapes, tmp_path):
    (config,) = (
        block.values[0] for block in blocks('python') if block.id.startswith('docs/finetune.md')
    )
    assert len(config.strip().splitlines()) <= 20
    (tmp_path / 'my_data.py').write_text(config)
    (tmp_path / 'plain.py').write_text(config.splitlines()[0])
    cfg, plain_cfg = (Config.fromfile(tmp_path / name) for name in ('my_data.py', 'plain.py'))
    plain_cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        plain = MODELS.build(plain_cfg.model).eval()
        plain.init_weights()
        mixed = MODELS.build(cfg.model).eval()
    weights = {name: w for name, w in plain.state_dict().items() if 'retina_cls' not in name}
    mixed.load_state_dict(weights, strict=False)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            mixed.extract_feat(images), plain.extract_feat(images), rtol=1e-3, atol=1e-4
        )

    torch.save(dict(state_dict=plain.state_dict(), meta={}), tmp_path / 'plain.pth')
    options = [
        f'data_root={shapes}/', f'load_from={tmp_path}/plain.pth', 'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
        'train_dataloader.dataset.pipeline.2.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    ]  # fmt: skip
    tool('train.py').main(
        [f'{tmp_path}/my_data.py', '--work-dir', f'{tmp_path}/run', '--cfg-options', *options]
    )
    trained = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)['state_dict']
    betas = [value for name, value in trained.items() if name.endswith('.mix.beta')]
    assert len(betas) == 8
    assert all(0 < abs(beta) < 0.1 for beta in betas)  # from 0, by the first step
