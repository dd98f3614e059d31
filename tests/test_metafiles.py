"""The metafiles list every config of their folders, with the sizes that the model zoo measures."""

import re
from pathlib import Path

import pytest
from mmengine.fileio import load

ROOT = Path(__file__).parents[1]
METAFILES = load(ROOT / 'model-index.yml')['Import']
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
        data = model['Metadata']
        assert (data['Parameters (M)'], data['FLOPs (G)']) == SIZES[data['Backbone']]
    names = [model['Name'] for model in content['Models']]
    assert names == sorted(path.stem for path in folder.glob('*.py'))
    for collection in content['Collections']:
        assert (ROOT / collection['README']).parent == folder
        assert (ROOT / collection['Code']).is_file()


def test_links_of_the_readmes_lead_somewhere():
    pages = list((ROOT / 'configs').rglob('README.md'))
    assert len(pages) > len(METAFILES)
    for page in pages:
        for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
            assert '://' in target or (page.parent / target).exists(), f'{page}: {target}'
