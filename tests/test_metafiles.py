"""`model-index.yml` and the metafiles: valid, complete, and without a result that was not measured."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config.utils import _get_cfg_metainfo

ROOT = Path(__file__).resolve().parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text(encoding='utf-8'))['Import']
LEAVES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'configs').glob('*/*.py')
    if path.parent.name not in ('_base_', 'baselines')
)


def metafile(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text(encoding='utf-8'))


@pytest.mark.parametrize('path', INDEX)
def test_models_belong_to_the_folder_and_its_collection(path: str):
    content, folder = metafile(path), Path(path).parent.as_posix()
    (collection,) = content['Collections']
    assert (ROOT / folder / collection['README']).is_file()
    assert (ROOT / collection['Code']['URL']).is_file()
    for model in content['Models']:
        assert model['In Collection'] == collection['Name']
        assert model['Config'] == f'{folder}/{model["Name"]}.py'


def test_every_config_of_a_method_is_listed_once():
    listed = [model['Config'] for path in INDEX for model in metafile(path)['Models']]
    assert sorted(listed) == LEAVES


def test_no_result_or_weight_is_claimed():
    for path in INDEX:
        for model in metafile(path)['Models']:
            assert not {'Results', 'Weights'} & set(model), f'{model["Name"]}: none has been trained in full here'


def test_titles_are_those_of_the_readme():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for path in INDEX:
        (collection,) = metafile(path)['Collections']
        assert collection['Paper']['Title'].split(':')[0] in readme
        assert collection['Paper'].get('URL', '') in readme


def test_mmengine_finds_every_config_in_the_index(tmp_path: Path):
    (tmp_path / '.mim').mkdir()
    for name in ('model-index.yml', 'configs'):
        (tmp_path / '.mim' / name).symlink_to(ROOT / name)
    for leaf in LEAVES:
        assert _get_cfg_metainfo(str(tmp_path), leaf.removeprefix('configs/'))['Name'] == Path(leaf).stem


def test_model_index_accepts_them():
    loader = pytest.importorskip('modelindex.load_model_index')
    index = loader.load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    assert len(index.models) == len(LEAVES)
