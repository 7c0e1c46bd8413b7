"""`--cfg-options data_root=...` reaches the data sets, or says which it does not."""

from pathlib import Path

import pytest

from mmkd.datasets import data_root
from mmkd.engine.launch import load_config


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in the log."""
    found: list[str] = []
    monkeypatch.setattr(data_root, 'print_log', lambda text, **_: found.append(text))
    return found


def config(folder: Path, train: str, val: str = 'data/coco/', top: str = "data_root = 'data/coco/'") -> str:
    """Path of a configuration whose data sets say their own roots; that of the training is wrapped twice."""
    (folder / 'c.py').write_text(
        f"""{top}
model = dict(type='RetinaNet')
part = dict(type='CocoDataset', data_root={train!r}, ann_file='train.json')
train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[part, part])))
val_dataloader = dict(dataset=dict(type='CocoDataset', data_root={val!r}, ann_file='val.json'))
"""
    )
    return str(folder / 'c.py')


def test_a_root_that_no_training_set_has_is_refused(tmp_path: Path) -> None:
    """The validation set moves: half a move is what nobody notices."""
    with pytest.raises(ValueError, match='reaches no data set of the training') as error:
        load_config(config(tmp_path, 'data/bccd/'), dict(data_root='/new'))
    for number in (0, 1):
        assert f"train_dataloader.dataset.dataset.datasets.{number}.data_root is 'data/bccd/'" in str(error.value)
    assert 'val_dataloader' not in str(error.value)


def test_a_single_set_elsewhere_is_a_warning(tmp_path: Path, warnings: list[str]) -> None:
    cfg = load_config(config(tmp_path, 'data/coco', 'data/bccd/'), dict(data_root='/new/'))
    assert cfg.train_dataloader.dataset.dataset.datasets[1].data_root == '/new'
    (text,) = warnings
    assert "leaves data sets where they were: val_dataloader.dataset.data_root is 'data/bccd/'" in text


@pytest.mark.parametrize('new', ['data/coco', 'data/coco/', '.', '/new'])
def test_sets_that_follow_are_silent(new: str, tmp_path: Path, warnings: list[str]) -> None:
    load_config(config(tmp_path, 'data/coco/'), dict(data_root=new))
    assert warnings == []


def test_a_root_that_is_chosen_beside_it_is_no_mistake(tmp_path: Path, warnings: list[str]) -> None:
    own = {f'train_dataloader.dataset.dataset.datasets.{n}.data_root': '/own' for n in (0, 1)}
    cfg = load_config(config(tmp_path, 'data/bccd/'), dict(data_root='/new') | own)
    assert cfg.train_dataloader.dataset.dataset.datasets[0].data_root == '/own'
    assert warnings == []


def test_without_a_top_level_root_the_keys_are_named(tmp_path: Path) -> None:
    keys = r'\(train_dataloader\.dataset\.dataset\.datasets\.0\.data_root, .*, val_dataloader\.dataset\.data_root\)'
    with pytest.raises(ValueError, match=f'no top-level data_root: .*{keys}'):
        load_config(config(tmp_path, 'data/bccd/', top=''), dict(data_root='/new'))
