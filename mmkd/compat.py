"""Every workaround for other people's releases, in one place.

Importing this module applies those that the installed releases need, so that MMRazor can be imported, checkpoints
are loaded without executing code, and a model can bring its own hooks to MMEngine's Runner. Each function names what
it is for and the release that ends it, and does nothing where it is not needed.
"""

import atexit
import functools
import importlib.util
import pickle
import re
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.config import config as config_module
from mmengine.config import utils as config_utils
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, checkpoint
from mmengine.runner import runner as runner_module
from mmengine.utils import digit_version

from mmkd.whole_files import cached_download, last_whole_checkpoint, removing_late, torchvision_url, write_whole


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint that cannot be read without executing code, or that is no checkpoint at all."""

    user_mistake = True


def import_mmrazor() -> None:
    """Make `mmrazor` importable.

    MMRazor 1.0.0 asserts mmcv <= 2.1.0, and its quantisation tables (never needed to distil) use names that
    torch 2.0 moved. Ended by an MMRazor release that does neither; none is announced.
    """
    if 'mmrazor' in sys.modules and 'mmrazor.models' in sys.modules:
        return
    tables = 'mmrazor.structures.quantization.backend_config'
    if digit_version(torch.__version__) >= digit_version('2.0.0') and tables not in sys.modules:
        stub = types.ModuleType(tables, 'Left out by mmkd.compat: fails to import on torch >= 2.0.')
        stub.BackendConfigs = {}
        stub.__all__ = ['BackendConfigs']
        sys.modules[tables] = stub
    version = mmcv.__version__
    if digit_version(version) > digit_version('2.1.0'):
        mmcv.__version__ = '2.1.0'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            importlib.import_module('mmrazor')
            importlib.import_module('mmrazor.models')
    finally:
        mmcv.__version__ = version


def _history_attribute(owner: type, name: str) -> Any:
    """Stand in for `getattr` in MMEngine's checkpoints: the statistics of HistoryBuffer and nothing else."""
    if owner is HistoryBuffer and not name.startswith('_'):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint.')


# torch looks allowed names up by module and name; `getattr` itself would let a checkpoint reach anything.
_history_attribute.__module__ = 'builtins'
_history_attribute.__name__ = _history_attribute.__qualname__ = 'getattr'


def _allowed_globals() -> list[Any]:
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdOSU'}
    return [
        _history_attribute,
        HistoryBuffer,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
        np.ndarray,
        np.dtype,
        slice,
        *dtypes,
    ]


def load_checkpoint_file(file: Any, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint without executing code: `weights_only` and a short list of allowed names, no fall-back.

    Args:
        file: path or binary file object.
        map_location: as in `torch.load`.

    Raises:
        UnsafeCheckpointError: the file needs a name that is not allowed, is cut off, or is no checkpoint.
    """
    torch.serialization.add_safe_globals(_allowed_globals())
    try:
        return _without_config_to_run(torch.load(file, map_location=map_location, weights_only=True))
    except (FileNotFoundError, PermissionError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        culprit = re.search(r'GLOBAL \S+|getattr\(.*?\)', str(error))
        # torch's own first line advises to execute the file.
        reason = culprit.group() if culprit else 'no plain tensors'
        raise UnsafeCheckpointError(
            f'Checkpoint {file} is refused: it is damaged or wants to execute code ({reason}).'
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        reason = str(error).strip().split('\n')[0]
        raise UnsafeCheckpointError(f'Checkpoint {file} is cut off or no checkpoint: {reason}') from error


def _without_config_to_run(content: Any) -> Any:
    """Without `meta['config']`, which MMEngine executes as Python when it resumes; it is of MMEngine before 0.1."""
    meta = content.get('meta') if isinstance(content, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return content


def fetch_checkpoint(name: str, model_dir: str | None = None, progress: bool = False) -> Path | None:
    """Local path of a checkpoint: one process downloads a URL, the others wait; None for others (`torchvision://`).

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded; says where to put it.
    """
    if not name.startswith(('http://', 'https://')):
        if '://' in name:
            return None
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'Checkpoint {path} does not exist.')
        return path
    return cached_download(name, model_dir, progress)


def _load_checkpoint_name(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = False
) -> Any:
    return load_checkpoint_file(str(fetch_checkpoint(filename, model_dir, progress)), map_location)


def _load_torchvision_name(filename: str, map_location: Any = None) -> Any:
    return _load_checkpoint_name(torchvision_url(filename), map_location)


def find_torchvision_weights() -> None:
    """Resolve `torchvision://resnet50` without torchvision, which MMEngine imports only to look up the address.

    Does nothing where torchvision is installed. Ended by an MMEngine release that reads its own list of addresses.
    """
    if importlib.util.find_spec('torchvision') is None:
        CheckpointLoader.register_scheme(prefixes='torchvision://', loader=_load_torchvision_name, force=True)


def close_pickle_fallback() -> None:
    """Load every checkpoint (load_from, resume, test, teacher, EMA) through `load_checkpoint_file`.

    onedl-mmengine 0.10.12 answers a refused pickle by executing it; mmengine 0.10.7 cannot read its own checkpoints
    under torch >= 2.6. Ended by a release with an allow-list and no fall-back.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=_load_checkpoint_name, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=_load_checkpoint_name, force=True)
    # torchvision://, open-mmlab:// and the others look these names up in MMEngine's module.
    checkpoint.load_from_http = _load_checkpoint_name
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = lambda file, map_location=None, weights_only=None: load_checkpoint_file(
            file, map_location
        )


def enable_config_prefix() -> None:
    """Let MMEngine resolve `mmkd::ssim/x.py`; call it before a config is parsed.

    MMEngine keeps a closed list of packages, and 0.10.7 looks for an editable one beside its metadata; the name of
    a module makes it look where that lies. Ended by a release that accepts any package (open-mmlab/mmengine#1410).
    A checkout that was not installed has no `mmkd/.mim`, where MMEngine looks: its configs are beside the package.
    """
    config_utils.MODULE2PACKAGE.setdefault('mmkd', __name__)
    package = Path(__file__).parent
    find, beside = config_module._get_external_cfg_path, package.parent / 'configs'
    if (package / '.mim' / 'configs').is_dir() or not beside.is_dir() or hasattr(find, 'looks_beside'):
        return

    def looking_beside(package_path: str, name: str) -> str:
        if Path(package_path) != package:
            return find(package_path, name)
        if not (beside / name).is_file():
            raise FileNotFoundError(f'mmkd has no config {name} in {beside}.')
        return str(beside / name)

    looking_beside.looks_beside = True
    config_module._get_external_cfg_path = looking_beside


def init_cpu_processes(cfg: Config) -> None:
    """Prepare a launched run of several processes on a machine without CUDA.

    MMEngine's launcher calls `torch.cuda.set_device` whatever the machine has: the gloo group must exist before the
    Runner, and DDP must not be given a device. Ended by an MMEngine release that asks `torch.cuda.is_available()`.
    """
    if cfg.get('launcher', 'none') == 'none' or torch.cuda.is_available():
        return
    if not torch.distributed.is_initialized():
        if cfg.launcher != 'pytorch':
            why = 'this torch was built without CUDA' if torch.version.cuda is None else 'torch sees no GPU'
            raise ValueError(f'Without CUDA ({why}) only the launcher "pytorch" is supported, got {cfg.launcher!r}.')
        torch.distributed.init_process_group(backend='gloo')
        # gloo's threads must end before the interpreter does, or it may abort at exit
        atexit.register(_leave_group)
    wrapper = cfg.get('model_wrapper_cfg') or dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def attach_model_hooks() -> None:
    """Let the Runner register the hooks that a model asks for by `runner_hooks()`.

    A distiller's connectors and random state must be saved although a method file cannot add a hook (its list would
    collide with the student's), also under MMDetection's own `tools/train.py`. MMEngine gives a model no way to say
    so; ended by a release that does. A hook of a type that the config already names is not added twice.
    """
    register: Callable = Runner.register_hooks
    if getattr(register, 'asks_model', False):
        return

    def register_hooks(self: Runner, default_hooks: dict | None = None, custom_hooks: list | None = None) -> None:
        register(self, default_hooks, custom_hooks)
        model = getattr(self.model, 'module', self.model)
        present = {type(hook).__name__ for hook in self.hooks}
        for hook in getattr(model, 'runner_hooks', list)():
            if hook['type'].rsplit('.', 1)[-1] not in present:
                self.register_hook(hook)

    register_hooks.asks_model = True
    Runner.register_hooks = register_hooks


def write_checkpoints_whole() -> None:
    """Checkpoints survive a kill and a full disk, and a damaged last one is passed over on resuming.

    MMEngine writes in place, removes the old checkpoint first, and resumes from whatever `last_checkpoint` names.
    Ended by a release that does none of these.
    """
    LocalBackend.put = lambda self, obj, filepath: write_whole(obj, filepath)
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        setattr(CheckpointHook, name, removing_late(getattr(CheckpointHook, name)))
    runner_module.find_latest_checkpoint = lambda folder: last_whole_checkpoint(folder, load_checkpoint_file)


def remember_config_text() -> None:
    """Format one and the same config once: the last texts are kept.

    MMEngine has yapf format the whole config, about a second each time, four times at the start of a run and again
    for every checkpoint and every log. Ended by a release that keeps the text.
    """
    if importlib.util.find_spec('yapf') is None:
        return
    yapf_api = importlib.import_module('yapf.yapflib.yapf_api')
    if hasattr(yapf_api.FormatCode, 'kept'):
        return
    plain, kept = yapf_api.FormatCode, {}

    @functools.wraps(plain)
    def remembered(text: str, *args: Any, **kwargs: Any) -> Any:
        key = (text, repr((args, kwargs)))
        if key not in kept:
            found = plain(text, *args, **kwargs)
            while len(kept) >= 4:
                del kept[next(iter(kept))]
            kept[key] = found
        return kept[key]

    remembered.kept = kept
    yapf_api.FormatCode = remembered
    if hasattr(config_module, 'FormatCode'):  # MMEngine up to 0.10.7 takes the name when it is imported
        config_module.FormatCode = remembered


import_mmrazor()
close_pickle_fallback()
find_torchvision_weights()
attach_model_hooks()
write_checkpoints_whole()
remember_config_text()
