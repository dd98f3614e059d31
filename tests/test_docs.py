"""The Python blocks of the documentation run: configs are built, scripts executed."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from acmix_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/**/*.md'))]
BLOCKS = [
    pytest.param(block, id=f'{page.relative_to(ROOT)}-{i}')
    for page in PAGES
    for i, block in enumerate(re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S))
]


def test_blocks_were_found():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize('block', BLOCKS)
def test_block_runs(block, tmp_path):
    if '_base_' not in block:
        exec(compile(block, '<documentation>', 'exec'), {})
        return
    (tmp_path / 'config.py').write_text(block)
    cfg = Config.fromfile(tmp_path / 'config.py')
    backbone = cfg.model.backbone
    backbone.init_cfg = None  # pretrained weights are not at hand
    backbone.setdefault('_scope_', cfg.default_scope)
    model = MODELS.build(backbone)
    assert model(torch.rand(1, 3, 64, 64))


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
            if '://' not in target:
                assert (page.parent / target).exists(), f'{page.name} links to {target}'
