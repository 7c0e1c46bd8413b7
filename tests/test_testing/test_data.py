import pytest

from mmkd.testing.data import data_root, shared_data


def test_the_environment_variable_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv('MMKD_DATA', str(tmp_path))
    (tmp_path / 'cells').mkdir()
    assert shared_data('cells') == tmp_path / 'cells'


def test_without_it_the_folder_beside_the_project_is_taken(monkeypatch):
    monkeypatch.delenv('MMKD_DATA', raising=False)
    assert data_root().parts[-2:] == ('shared', 'data')


def test_absent_data_is_an_error_that_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv('MMKD_DATA', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no 'cells' in {tmp_path}; set MMKD_DATA"):
        shared_data('cells')
