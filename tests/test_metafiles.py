"""The metafiles list every config of their folders, with the sizes that the model zoo measures."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load

import acmix_mm  # noqa: F401  makes mmengine find the configs of mmseg

ROOT = Path(__file__).parents[1]
METAFILES = load(ROOT / 'model-index.yml')['Import']
CONTENTS = [load(ROOT / metafile) for metafile in METAFILES]
MODELS = [model for content in CONTENTS for model in content['Models']]
FOLDERS = {
    'COCO': 'data/coco/',
    'ADE20K': 'data/ade/',
    'Cityscapes': 'data/cityscapes/',
    'PASCAL VOC 2012 + Aug': 'data/VOCdevkit/VOC2012',
    'ImageNet-1k': 'data/imagenet',
}
LENGTHS = {'Epochs': 'max_epochs', 'Iterations': 'max_iters'}
SIZES = {
    cells[0]: (float(cells[1]), float(cells[5]))
    for cells in (
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in (ROOT / 'docs' / 'model_zoo.md').read_text().splitlines()
        if re.match(r'\| \S+-ACmix \| \d', line)
    )
}


def test_the_index_names_every_metafile():
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('metafile.yml'))
    assert found == METAFILES
    assert len(found) >= 4


@pytest.mark.parametrize('metafile', METAFILES)
def test_metafile(metafile):
    folder = (ROOT / metafile).parent
    content = load(ROOT / metafile)
    collections = [collection['Name'] for collection in content['Collections']]
    readme = (folder / 'README.md').read_text()
    for model in content['Models']:
        config = ROOT / model['Config']
        assert config.parent == folder
        assert config.stem == model['Name']
        assert f'(./{config.name})' in readme
        assert model['In Collection'] in collections
    names = [model['Name'] for model in content['Models']]
    assert names == sorted(path.stem for path in folder.glob('*.py'))
    for collection in content['Collections']:
        assert (ROOT / collection['README']).parent == folder
        assert (ROOT / collection['Code']).is_file()


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_metadata_are_those_of_the_config(model):
    cfg = Config.fromfile(ROOT / model['Config'])
    data = dict(model['Metadata'])
    backbone = data.pop('Backbone')
    assert backbone.lower().replace('resnet-', 'resnet').replace('san-', 'san') in model['Name']
    assert (data.pop('Parameters (M)'), data.pop('FLOPs (G)')) == SIZES[backbone]
    assert cfg.data_root.startswith(FOLDERS[data.pop('Training Data')])
    length = {key: cfg.train_cfg.get(name) for key, name in LENGTHS.items()}
    assert data == {key: value for key, value in length.items() if value}


@pytest.mark.parametrize('model', [m for m in MODELS if 'Published' in m], ids=lambda m: m['Name'])
def test_published_figures_are_those_of_the_readme(model):
    assert set(model['Published']) == {'Source', 'Metrics'}
    readme = (ROOT / model['Config']).with_name('README.md').read_text()
    (row,) = [line for line in readme.splitlines() if f'(./{model["Name"]}.py)' in line]
    assert model['Published']['Source'].startswith('https://')
    assert row.endswith(f' {model["Published"]["Metrics"]["Top 1 Accuracy"]} |')


def test_figures_of_plain_backbones_have_a_source():
    """They were published for the same head and schedule."""
    plain = {m['Name']: m['Plain Backbone'] for m in MODELS if 'Plain Backbone' in m}
    assert len(plain) == 9
    for name, figures in plain.items():
        assert set(figures) == {'Source', 'Metrics'}
        assert figures['Source'].startswith('https://github.com/LeapLabTHU/Slide-Transformer/')
        coco = name.endswith('coco')
        assert set(figures['Metrics']) == ({'box AP', 'mask AP'} if coco else {'mIoU'})


def test_names_are_unique():
    names = [model['Name'] for model in MODELS]
    names += [collection['Name'] for content in CONTENTS for collection in content['Collections']]
    assert len(names) == len(set(names))


def test_links_of_the_readmes_lead_somewhere():
    pages = list((ROOT / 'configs').rglob('README.md'))
    assert len(pages) > len(METAFILES)
    for page in pages:
        for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
            assert '://' in target or (page.parent / target).exists(), f'{page}: {target}'
