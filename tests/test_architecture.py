"""The house rules of DESIGN section 1, checked on the source; each is seen to fail on a planted violation.

A rule takes the folder of a package named `mmkd` and returns what breaks it, one text a violation.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'mmkd'

MAX_LINES, MAX_BODY, MAX_ARGUMENTS, MAX_DEPTH = 300, 50, 7, 2

# What a place may import beside the standard library and this package; one that is not named here is bound by the two
# lists below alone.
MIDDLE = ('losses', 'connectors', 'masks', 'self_teachers', 'apart', 'autograd_graph')
MAY_IMPORT = {
    'functional/': {'torch'},
    'registry.py': {'mmengine'},
    'near_names.py': set(),
    'process_ranks.py': set(),
    'whole_files.py': {'torch', 'mmengine'},
    'releases.py': {'torch', 'mmengine', 'mmcv'},
    **{f'models/{part}{end}': {'torch', 'mmengine'} for part in MIDDLE for end in ('/', '.py')},
}
MAY_IMPORT_MMRAZOR = ('models/distillers/', 'models/algorithms/', 'compat.py')
MAY_IMPORT_MMDET = ('datasets/', 'evaluation/', 'models/algorithms/', 'engine/', 'compat.py')

# Who may import whom inside the package: only what stands further up in this list, or beside it. Every module stands in
# it but those that are bare.
BARE = ('mmkd', 'mmkd.models')
ORDER = (
    ('functional',),
    ('registry',),
    tuple(f'models.{part}' for part in MIDDLE),
    ('near_names', 'process_ranks', 'releases', 'whole_files'),
    ('compat', 'datasets', 'evaluation'),
    ('models.distillers',),
    ('models.algorithms',),
    ('engine', 'visualization'),
    ('testing',),
)


# ---- reading the source ---------------------------------------------------------------------------------------------


def sources(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob('*.py') if '.mim' not in path.relative_to(package).parts)


def module_name(package: Path, path: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix('').parts]
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


def imports(package: Path, path: Path) -> Iterator[tuple[str, str | None]]:
    """Absolute module and imported name (None for `import x`) of every import, also inside functions."""
    own = module_name(package, path).split('.')
    base = own if path.name == '__init__.py' else own[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = '.'.join(base[: len(base) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (start, node.module) if part)
            yield from ((module, alias.name) for alias in node.names)


def is_package(package: Path, module: str) -> bool:
    return package.parent.joinpath(*module.split('.'), '__init__.py').is_file()


def is_module(package: Path, module: str) -> bool:
    return package.parent.joinpath(*module.split('.')).with_suffix('.py').is_file() or is_package(package, module)


def defining_module(package: Path, module: str, name: str | None) -> str:
    """Module that an import runs: `from mmkd.engine import preflight` means `mmkd.engine.preflight`."""
    whole = f'{module}.{name}'
    return whole if name and is_module(package, whole) else module


# ---- the rules ------------------------------------------------------------------------------------------------------


def rings(package: Path) -> list[str]:
    """`functional` imports torch only, the parts of a method also MMEngine; MMRazor and MMDetection stay outside."""
    found = []
    for path in sources(package):
        relative = path.relative_to(package).as_posix()
        allowed = next((tops for place, tops in MAY_IMPORT.items() if relative.startswith(place)), None)
        for module, _ in imports(package, path):
            top = module.split('.')[0]
            if top in sys.stdlib_module_names or top == package.name:
                continue
            outside = allowed is not None and top not in allowed
            razor = top == 'mmrazor' and not relative.startswith(MAY_IMPORT_MMRAZOR)
            mmdet = top == 'mmdet' and not relative.startswith(MAY_IMPORT_MMDET)
            if outside or razor or mmdet:
                found.append(f'{relative} imports {module}')
    return found


def layers(package: Path) -> list[str]:
    """Inside the package imports point up: a loss knows no distiller, an algorithm no hook; every module has a rank."""

    def rank(module: str) -> int | None:
        inner = module.removeprefix(f'{package.name}.')
        hits = [i for i, names in enumerate(ORDER) if any(f'{inner}.'.startswith(f'{n}.') for n in names)]
        return hits[0] if hits else None

    found = []
    for path in sources(package):
        relative, whole = path.relative_to(package).as_posix(), module_name(package, path)
        own = rank(whole)
        if own is None and whole not in BARE:
            found.append(f'{relative} stands nowhere in ORDER')
        for module, name in imports(package, path):
            if module.split('.')[0] == package.name and own is not None:
                target = defining_module(package, module, name)
                other = rank(target)
                if other is not None and other > own:
                    found.append(f'{relative} imports {target}')
    return found


def depth(package: Path) -> list[str]:
    """At most two folders under the package."""
    relatives = [path.relative_to(package) for path in sources(package)]
    return [relative.as_posix() for relative in relatives if len(relative.parts) - 1 > MAX_DEPTH]


def file_length(package: Path) -> list[str]:
    """At most 300 lines a file."""
    lengths = {path: len(path.read_text(encoding='utf-8').splitlines()) for path in sources(package)}
    return [f'{path.relative_to(package).as_posix()}: {n} lines' for path, n in lengths.items() if n > MAX_LINES]


def functions(package: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sources(package):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f'{path.relative_to(package).as_posix()}:{node.lineno} {node.name}', node


def body_length(package: Path) -> list[str]:
    """At most 50 lines in a function, its docstring not counted."""
    found = []
    for name, node in functions(package):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if length > MAX_BODY:
            found.append(f'{name}: {length} lines')
    return found


def argument_count(package: Path) -> list[str]:
    """At most seven arguments beside `self`; the three optional ones of a loss's `forward` included."""
    found = []
    for name, node in functions(package):
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([a for a in arguments if a not in ('self', 'cls')])
        if count > MAX_ARGUMENTS:
            found.append(f'{name}: {count} arguments')
    return found


def import_cycles(package: Path) -> list[str]:
    """No module imports itself over others."""
    graph = {}
    for path in sources(package):
        targets = {
            defining_module(package, module, name)
            for module, name in imports(package, path)
            if module.split('.')[0] == package.name
        }
        graph[module_name(package, path)] = targets
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [' -> '.join(error.args[1])]
    return []


def no_utils(package: Path) -> list[str]:
    """A helper lives beside its user: no file called `utils.py` or the like."""
    names = {'utils', 'util', 'misc', 'common', 'helpers'}
    paths = [*sources(package), *(path.parent for path in sources(package))]
    return sorted({path.relative_to(package).as_posix() for path in paths if path.stem in names})


def no_facades(package: Path) -> list[str]:
    """Import the defining module, never a package that passes its content on."""
    found = []
    for path in sources(package):
        for module, name in imports(package, path):
            if module.split('.')[0] != package.name:
                continue
            target = defining_module(package, module, name)
            if is_package(package, target) and not defines(package, target, name):
                found.append(f'{path.relative_to(package).as_posix()} imports {name or "all"} of {module}')
    return found


def defines(package: Path, module: str, name: str | None) -> bool:
    """Whether a package's own `__init__.py` makes the name, such as `__version__`."""
    tree = tree_of(package.parent.joinpath(*module.split('.'), '__init__.py'))
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return name in {getattr(target, 'id', None) for target in targets}


def no_assert_or_eval(package: Path) -> list[str]:
    """`assert` guards no user's input (it vanishes under `python -O`), and no text becomes code."""
    found = []
    for path in sources(package):
        for node in ast.walk(tree_of(path)):
            called = isinstance(node, ast.Call) and getattr(node.func, 'id', None) in ('eval', 'exec')
            if isinstance(node, ast.Assert) or called:
                found.append(f'{path.relative_to(package).as_posix()}:{node.lineno}')
    return found


def bare_root(package: Path) -> list[str]:
    """`mmkd/__init__.py` and `mmkd/models/__init__.py` import nothing, so that `mmkd.functional` needs torch alone."""
    roots = [package / '__init__.py', package / 'models' / '__init__.py', package / 'functional' / '__init__.py']
    return [str(path.relative_to(package)) for path in roots if path.is_file() and list(imports(package, path))]


# Rule, and for each a file that breaks it.
long_body = 'def f():\n' + '    x = 1\n' * 51
PLANTED: list[tuple[Callable[[Path], list[str]], str, str]] = [
    (rings, 'functional/x.py', 'import mmengine\n'),
    (rings, 'functional/x.py', 'import numpy as np\n'),
    (rings, 'models/losses/x.py', 'from mmrazor.models.losses import L2Loss\n'),
    (rings, 'models/masks/x.py', 'def f():\n    import mmdet.models\n'),
    (rings, 'models/distillers/x.py', 'import mmdet\n'),
    (rings, 'datasets/x.py', 'import mmrazor\n'),
    (rings, 'engine/x.py', 'import mmrazor\n'),
    (rings, 'registry.py', 'import torchvision\n'),
    (rings, 'near_names.py', 'import numpy\n'),
    (rings, 'process_ranks.py', 'import torch\n'),
    (rings, 'whole_files.py', 'import mmdet\n'),
    (rings, 'releases.py', 'import mmrazor\n'),
    (rings, 'models/autograd_graph.py', 'import mmcv\n'),
    (rings, 'models/apart.py', 'import mmcv\n'),
    (layers, 'models/losses/x.py', 'from mmkd.models.distillers.wiring import Tap\n'),
    (layers, 'models/algorithms/x.py', 'import mmkd.engine.launch\n'),
    (layers, 'functional/x.py', 'from mmkd.registry import MODELS\n'),
    (layers, 'engine/x.py', 'from mmkd.testing import shrink\n'),
    (layers, 'functional/zz.py', 'from mmkd.whole_files import write_whole\n'),
    (layers, 'functional/zz.py', 'from mmkd import near_names\n'),
    (layers, 'models/losses/zz.py', 'from mmkd.whole_files import write_whole\n'),
    (layers, 'models/masks/zz.py', 'from mmkd.process_ranks import global_rank\n'),
    (layers, 'models/autograd_graph.py', 'from mmkd.engine.launch import load_config\n'),
    (layers, 'whole_files.py', 'from mmkd.compat import load_checkpoint_file\n'),
    (layers, 'registry.py', 'from mmkd.models.losses.base import FeatureLoss\n'),
    (layers, 'another.py', ''),
    (layers, 'models/another.py', ''),
    (layers, 'another/__init__.py', ''),
    (depth, 'models/losses/ssim/x.py', ''),
    (file_length, 'models/losses/x.py', 'x = 1\n' * 301),
    (body_length, 'models/losses/x.py', long_body),
    (body_length, 'models/losses/x.py', 'class A:\n    async ' + long_body.replace('\n', '\n    ').rstrip()),
    (argument_count, 'models/losses/x.py', 'def f(a, b, c, d, *, e, f, g, h): ...\n'),
    (no_utils, 'models/losses/utils.py', ''),
    (no_utils, 'engine/utils/x.py', ''),
    (no_facades, 'engine/x.py', 'from mmkd.models.losses import SSIMLoss\n'),
    (no_facades, 'engine/x.py', 'import mmkd.models.losses\n'),
    (no_facades, 'models/losses/x.py', 'from . import SSIMLoss\n'),
    (import_cycles, 'models/losses/x.py', 'import mmkd.models.losses.x\n'),
    (no_assert_or_eval, 'models/losses/x.py', 'assert True\n'),
    (no_assert_or_eval, 'models/losses/x.py', "y = eval('1')\n"),
    (bare_root, 'models/__init__.py', 'from mmkd.models.losses import base\n'),
]
RULES = sorted({rule for rule, _, _ in PLANTED}, key=lambda rule: rule.__name__)


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Callable[[Path], list[str]]):
    assert rule(PACKAGE) == []


@pytest.fixture
def small_package(tmp_path: Path) -> Path:
    """A package that keeps every rule."""
    files = {
        '__init__.py': "__version__ = '1'\n",
        'registry.py': 'from mmengine.registry import Registry\n',
        'near_names.py': 'import difflib\n',
        'functional/ssim.py': 'import math\nimport torch\n',
        'models/losses/base.py': 'from mmkd.registry import MODELS\nfrom mmkd.functional import ssim\nimport torch\n',
        'models/losses/ssim_loss.py': 'from mmkd.models.losses.base import FeatureLoss\n',
        'models/losses/__init__.py': 'from . import base, ssim_loss\n',
        'models/distillers/wiring.py': 'import mmrazor\n',
        'engine/launch.py': 'from mmkd import __version__\nfrom mmkd.models.losses import ssim_loss\nimport mmdet\n',
    }
    for name, text in files.items():
        path = tmp_path / 'mmkd' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in ('functional', 'models', 'models/distillers', 'engine'):
        (tmp_path / 'mmkd' / folder / '__init__.py').touch()
    return tmp_path / 'mmkd'


def test_small_package_keeps_every_rule(small_package: Path):
    assert [violation for rule in RULES for violation in rule(small_package)] == []


@pytest.mark.parametrize(('rule', 'name', 'text'), PLANTED, ids=lambda value: getattr(value, '__name__', None))
def test_planted_violation_is_found(rule: Callable[[Path], list[str]], name: str, text: str, small_package: Path):
    path = small_package / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert len(rule(small_package)) >= 1


def test_cycle_over_three_modules_is_found(small_package: Path):
    (small_package / 'models/losses/base.py').write_text('from mmkd.models.losses import ssim_loss\n')
    assert 'mmkd.models.losses.base' in import_cycles(small_package)[0]


def test_there_is_a_package_to_look_at():
    assert len(sources(PACKAGE)) > 50
