"""Workarounds for other people's releases."""

import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config import config as config_module
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.utils import get_installed_path
from yapf.yapflib import yapf_api

from mmkd import compat, releases


class Execute:
    """A pickle that runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.file}',)


class ReachAttribute:
    """A pickle that reaches for an attribute by `getattr`."""

    def __reduce__(self) -> tuple:
        return getattr, (OrderedDict, 'fromkeys')


def test_mmrazor_imports_in_a_fresh_process():
    code = 'import mmkd.compat, mmcv, mmrazor.models.distillers; assert mmcv.__version__ != "2.1.0" or True'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


def test_mmcvs_version_is_what_it_was():
    import mmcv
    from mmcv.version import __version__

    assert mmcv.__version__ == __version__


def test_a_checkpoint_of_mmengine_loads(tmp_path):
    buffer = HistoryBuffer()
    buffer.update(3.0)
    content = dict(history=buffer, array=np.arange(3), scalar=np.float64(2), text='x', weights=torch.ones(2))
    torch.save(content, tmp_path / 'a.pth')
    loaded = compat.load_checkpoint_file(tmp_path / 'a.pth')
    assert loaded['history'].current() == 3.0
    assert loaded['array'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('prefix', ['', 'file'])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, prefix):
    proof = tmp_path / 'proof'
    torch.save(dict(state_dict={}, x=Execute(proof)), tmp_path / 'bad.pth')
    name = str(tmp_path / 'bad.pth')
    with pytest.raises(compat.UnsafeCheckpointError, match='wants to execute code .*system'):
        compat.load_checkpoint_file(name)
    with pytest.raises(compat.UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(name)
    with pytest.raises(compat.UnsafeCheckpointError):
        load_checkpoint(torch.nn.Linear(1, 1), name)
    assert not proof.exists()


def test_the_hosts_own_loader_has_no_fallback(tmp_path):
    if not hasattr(mmengine_checkpoint, '_safe_torch_load'):
        pytest.skip('this MMEngine has no fall-back to close')
    proof = tmp_path / 'proof'
    torch.save(Execute(proof), tmp_path / 'bad.pth')
    with pytest.raises(compat.UnsafeCheckpointError):
        mmengine_checkpoint._safe_torch_load(str(tmp_path / 'bad.pth'))
    assert not proof.exists()


def test_getattr_is_no_way_out_of_the_allow_list(tmp_path):
    torch.save(dict(x=ReachAttribute()), tmp_path / 'bad.pth')
    with pytest.raises(compat.UnsafeCheckpointError, match='getattr'):
        compat.load_checkpoint_file(tmp_path / 'bad.pth')


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / 'bad.pth').write_bytes(pickle.dumps(dict(a=1, b=Execute(tmp_path / 'proof'))))
    with pytest.raises(compat.UnsafeCheckpointError):
        compat.load_checkpoint_file(tmp_path / 'bad.pth')
    assert not (tmp_path / 'proof').exists()


@pytest.mark.parametrize('share', [0.0, 0.1, 0.9])
def test_a_cut_off_file_is_refused(tmp_path, share):
    torch.save(dict(weights=torch.ones(1000)), tmp_path / 'a.pth')
    content = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(content[: int(len(content) * share)])
    with pytest.raises(compat.UnsafeCheckpointError, match='cut off|damaged'):
        compat.load_checkpoint_file(tmp_path / 'a.pth')


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match='/nowhere/x.pth does not exist'):
        compat.fetch_checkpoint('/nowhere/x.pth')


def test_a_download_that_fails_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def refuse(url, path, progress):
        raise OSError('no network')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    with pytest.raises(FileNotFoundError, match=r'no network.*put it at .*checkpoints/x-1234\.pth'):
        compat.fetch_checkpoint('https://example.org/a/x-1234.pth')


def test_a_download_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    calls = []

    def download(url, path, progress):
        calls.append(url)
        torch.save(dict(state_dict={}), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    for _ in range(2):
        path = compat.fetch_checkpoint('https://example.org/a/x.pth')
    assert len(calls) == 1
    assert compat.load_checkpoint_file(path) == dict(state_dict={})
    assert not list(path.parent.glob('*.part'))


def test_one_process_downloads_and_the_others_wait_for_its_file(tmp_path, monkeypatch):
    """Locks belong to an open file, so that threads stand for processes here."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    calls = []

    def download(url, path, progress):
        calls.append(url)
        time.sleep(0.3)
        torch.save(dict(state_dict={}), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(compat.fetch_checkpoint, ['https://example.org/a/x.pth'] * 4))
    assert len(calls) == 1 and len(set(paths)) == 1 and paths[0].is_file()


def test_the_config_prefix_is_known_after_it_is_enabled():
    from mmengine.config import utils

    compat.enable_config_prefix()
    assert get_installed_path(utils.MODULE2PACKAGE['mmkd']) == str(Path(compat.__file__).parent)


def test_cpu_processes_are_left_alone_without_a_launcher():
    cfg = Config(dict(launcher='none'))
    compat.init_cpu_processes(cfg)
    assert 'model_wrapper_cfg' not in cfg
    assert not torch.distributed.is_initialized()


def test_tested_versions_give_no_warning():
    assert releases.check_versions() == []


def test_an_untested_version_is_named(monkeypatch):
    monkeypatch.setitem(releases.TESTED, 'mmdet', ('9.0.0', '9.9', '9.1'))
    with pytest.warns(UserWarning, match=r'supports mmdet 9.0.0 to 9.9 \(tested with 9.1\), found'):
        assert len(releases.check_versions()) == 1


def test_an_mmcv_without_operators_is_mended_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(ImportError, match='no-build-isolation'):
        releases.check_ops()


def test_cpu_operators_on_a_machine_with_a_gpu_are_said_before_the_first_nms(monkeypatch):
    import mmcv.ops

    releases.check_ops()  # without a GPU they are right
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: 'not available')
    with pytest.raises(ImportError, match=r'without CUDA operators.*FORCE_CUDA=1 pip install'):
        releases.check_ops()
    monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: '13.0')
    releases.check_ops()


@pytest.mark.skipif(torch.cuda.is_available(), reason='has CUDA')
@pytest.mark.parametrize(('cuda', 'why'), [(None, 'was built without CUDA'), ('13.0', 'torch sees no GPU')])
def test_a_launcher_that_needs_cuda_is_told_why_there_is_none(cuda, why, monkeypatch):
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    with pytest.raises(ValueError, match=rf'{why}.*only the launcher "pytorch".*slurm'):
        compat.init_cpu_processes(Config(dict(launcher='slurm')))


def test_torchvisions_weights_are_found_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: None)
    compat.find_torchvision_weights()
    asked = []

    def download(url, path, progress):
        asked.append(url)
        torch.save(dict(conv=torch.ones(1)), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    loaded = CheckpointLoader.load_checkpoint('torchvision://resnet18', map_location='cpu')
    assert loaded['conv'] == 1
    assert asked[0].endswith('.pth') and 'resnet18' in asked[0]
    with pytest.raises(FileNotFoundError, match='torchvision://resnet1 is not among'):
        CheckpointLoader.load_checkpoint('torchvision://resnet1')


def test_a_config_is_formatted_once_and_again_when_it_changed(monkeypatch):
    seen = []
    assert getattr(config_module, 'FormatCode', yapf_api.FormatCode) is yapf_api.FormatCode
    plain = yapf_api.FormatCode.replaced.__wrapped__  # `conftest` has replaced what is tested here
    monkeypatch.setattr(
        yapf_api, 'FormatCode', lambda text, **style: seen.append((text, style)) or plain(text, **style)
    )
    monkeypatch.setattr(config_module, 'FormatCode', yapf_api.FormatCode, raising=False)
    compat.remember_config_text()
    cfg = Config(dict(model=dict(type='A', width=[1, 2]), name='x'))
    texts = [cfg.pretty_text, cfg.pretty_text, cfg.dump()]
    assert len(seen) == 1
    assert set(texts) == {plain(seen[0][0], **seen[0][1])[0]}
    cfg.name = 'y'
    assert "name = 'y'" in cfg.pretty_text
    assert len(seen) == 2
    for number in range(9):
        assert f'name = {number}' in Config(dict(name=number)).pretty_text
    assert len(yapf_api.FormatCode.kept) == 4


def test_a_config_inside_a_checkpoint_is_not_executed(tmp_path):
    """MMEngine runs `meta['config']` as Python when it resumes."""
    text = f'open({str(tmp_path / "executed")!r}, "w").close()'
    torch.save(dict(meta=dict(config=text, cfg='kept', epoch=1), state_dict={}), tmp_path / 'x.pth')
    assert compat.load_checkpoint_file(str(tmp_path / 'x.pth'))['meta'] == dict(cfg='kept', epoch=1)


def test_a_full_gpu_is_not_called_a_damaged_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(torch, 'load', full)
    with pytest.raises(torch.OutOfMemoryError):
        compat.load_checkpoint_file('x.pth')
