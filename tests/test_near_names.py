"""Endings of error messages: names and folders nearest to what is not there."""

from mmkd.near_names import absent, absent_file, nearest


def test_nearest_prefers_what_looks_alike():
    assert nearest('neck.fpn_conv', ['neck.fpn_convs', 'backbone', 'bbox_head']).startswith('nearest: neck.fpn_convs')
    assert nearest('zzz', ['a', 'b']) == 'there are: a, b'


def test_absent_names_the_folders_most_like_the_one_that_is_not_there(tmp_path):
    for name in ('bccd', 'kitti'):
        (tmp_path / name).mkdir()
    (tmp_path / 'bcc.zip').touch()
    assert absent(tmp_path / 'bcc') == f'{tmp_path}/bcc does not exist; nearest: bccd'


def test_absent_finds_the_first_part_that_is_not_there(tmp_path):
    (tmp_path / 'data' / 'bccd').mkdir(parents=True)
    assert absent(tmp_path / 'dat' / 'bccd') == f'{tmp_path}/dat does not exist; nearest: data'


def test_absent_says_that_a_file_is_no_folder(tmp_path):
    (tmp_path / 'data').touch()
    assert absent(tmp_path / 'data' / 'bccd') == f'{tmp_path}/data is no folder; there are: none'


def test_absent_says_that_configs_do_not_expand_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/a.json').touch()
    assert absent('~/data') == f'~ is not expanded in configs; write {tmp_path}/data'
    assert absent('~/dat') == f'{tmp_path}/dat does not exist; nearest: data (~ is not expanded in configs)'
    assert absent_file('~/data/a.json').endswith(f'~ is not expanded in configs; write {tmp_path}/data/a.json')


def test_absent_file_tells_a_folder_from_what_is_not_there(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train.txt').touch()
    assert absent_file(tmp_path / 'train') == f'{tmp_path}/train is a folder; a file is wanted'
    assert absent_file(tmp_path / 'tain.txt') == f'{tmp_path}/tain.txt does not exist; nearest: train.txt'


def test_absent_file_names_the_folder_that_is_not_there(tmp_path):
    (tmp_path / 'annotations').mkdir()
    said = absent_file(tmp_path / 'anotations' / 'train.json')
    missing = tmp_path / 'anotations'
    assert said == f'{missing}/train.json does not exist: {missing} does not exist; nearest: annotations'
