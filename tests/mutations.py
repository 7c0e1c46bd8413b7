"""Takes the code behind a promise away and sees whether its test fails: `python tests/mutations.py [NAME ...]`.

Each mutation is one text of one file, replaced in a copy of the working tree. `tests/test_mutations.py` keeps the list
true: every text is there once, every test exists.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = 'tests/test_engine'
RESUMED, GUARD, CRASH = (f'{ENGINE}/test_{name}.py' for name in ('resumed_run', 'guard', 'crash'))
BAD = 'tests/test_tools/test_bad_input.py'
CAUGHT, NOT_CAUGHT, NO_TEST = 'caught', 'NOT CAUGHT', 'NO SUCH TEST'


@dataclass(frozen=True)
class Mutation:
    """A promise without its code.

    Args:
        file: Path below the root of the repository.
        old: Text that is there once.
        new: What stands in its place.
        test: File of the tests that must fail.
        chosen: pytest's `-k`; empty for all tests of the file.
    """

    file: str
    old: str
    new: str
    test: str
    chosen: str = ''


LOADING, HOOK = 'mmkd/engine/loader_state.py', 'mmkd/engine/hooks/distill_checkpoint_hook.py'
LOSSES, NORMALISERS = 'mmkd/models/losses', 'tests/test_models/test_losses/test_two_processes_normalisers.py'
WHOLE, DATA, PREFLIGHT = 'mmkd/whole_files.py', 'mmkd/engine/preflight_data.py', 'mmkd/engine/preflight.py'

MUTATIONS = {
    # crash and resume
    'checkpoints are written beside their name': Mutation(
        WHOLE,
        "part = path.with_name(f'.{path.name}.part')",
        'part = path',
        CRASH,
        'half_way or full_disk_is or mmengine',
    ),
    'the old checkpoint goes behind the new one': Mutation(
        WHOLE,
        'self._late.append((self._backend.remove, path, self._identity(path)))',
        'self._backend.remove(path)',
        CRASH,
        'old_checkpoint_goes',
    ),
    'a damaged checkpoint is passed over': Mutation(WHOLE, 'read(str(path))', 'pass', CRASH, 'truncated_last'),
    'another run is refused': Mutation(
        HOOK, 'self._check_same_run(runner, model, checkpoint)', 'pass', RESUMED, 'refused'
    ),
    'random state is restored': Mutation(
        LOADING, 'set_random_state(state)\n        if', 'if', RESUMED, 'uninterrupted_run and faster'
    ),
    'averages of connectors are restored': Mutation(
        HOOK, "if f'ema_{name}' in saved:", 'if False:', RESUMED, 'uninterrupted_run and retinanet'
    ),
    'random state of lasting workers is restored': Mutation(
        LOADING,
        'self.loader.worker_init_fn = RestoringInit(self._init, states)',
        'return',
        RESUMED,
        'workers_that_live',
    ),
    'the number that starting workers draw is drawn': Mutation(
        LOADING, 'self._once = state  #', 'self._once = None  #', RESUMED, 'workers_that_live'
    ),
    'the iteration loop goes on where it was': Mutation(
        LOADING,
        'self.loop.dataloader_iterator = ResumedIterator(self.loop.dataloader_iterator, self.begin, state)',
        'pass',
        RESUMED,
        'iteration_loop and InfiniteSampler-0',
    ),
    'rates follow a changed number of processes': Mutation(
        'mmkd/engine/resumed_rates.py',
        "ratio = now.get('initial_lr', now['lr']) / before.get('initial_lr', before['lr'])",
        'ratio = 1.0',
        RESUMED,
        'changed_number',
    ),
    'idle connectors do not decay': Mutation(
        HOOK, 'self._spare_idle(runner)\n', 'pass\n', f'{ENGINE}/test_training_run.py', 'idle_connectors'
    ),
    # numbers
    'NaN and infinity are seen': Mutation(
        'mmkd/engine/hooks/guard_hook.py', 'return bool(bad.item())', 'return False', GUARD, 'names_what'
    ),
    'the first steps are reported': Mutation(
        'mmkd/engine/first_steps.py',
        'return [] if self.left else self._report()',
        'return []',
        GUARD,
        'constant_loss or without_gradient or never_comes',
    ),
    # several processes
    'mask sums are means over the processes': Mutation(
        f'{LOSSES}/base.py',
        'mean_over_ranks(mask.sum())',
        'mask.sum()',
        NORMALISERS,
        'joined and (l1 or l2 or inside or plain)',
    ),
    "the sum of SSIM's mask is a mean over the processes": Mutation(
        f'{LOSSES}/ssim_loss.py', 'mean_over_ranks(mask.sum())', 'mask.sum()', NORMALISERS, 'joined and ssim'
    ),
    'the sum of the background is a mean over the processes': Mutation(
        f'{LOSSES}/masked_feature_loss.py',
        'weighted_mean(values, _outside(mask))',
        'weighted_mean(values, _outside(mask), _outside(mask).sum())',
        NORMALISERS,
        'joined and background',
    ),
    'numbers of positives are means over the processes': Mutation(
        f'{LOSSES}/logit_loss.py',
        'mean_over_ranks(self._count(student, labels))',
        'self._count(student, labels)',
        NORMALISERS,
        'joined and (soft or decoupled)',
    ),
    'few positives in all are counted as they are': Mutation(
        f'{LOSSES}/logit_loss.py', '.clamp(min=1 / get_world_size())', '.clamp(min=1)', NORMALISERS, 'joined and dense'
    ),
    # before training
    'sizes of the config are bounded': Mutation(
        PREFLIGHT, 'sizes = list(check_sizes(cfg))', 'sizes = []', BAD, 'classes and bomb or (no and epochs)'
    ),
    'one step is taken before training': Mutation(
        PREFLIGHT, 'problem = step_problem(built)', 'problem = None', BAD, 'gate or (other and points)'
    ),
    'nested annotations are bounded': Mutation(DATA, 'MAX_NESTING = 2000', 'MAX_NESTING = 10**9', BAD, 'nested'),
    'KITTI files are looked for': Mutation(
        DATA, 'check_kitti(name, dataset, root, paths)\n', '()\n', f'{ENGINE}/test_preflight.py', 'kitti and not right'
    ),
    'paths stay in the data folder': Mutation(
        DATA, "if outside and str(folder) != '.':", 'if False:', BAD, 'leaves or absolute'
    ),
    'a missing operator is named': Mutation(
        'mmkd/models/algorithms/missing_operator.py',
        "layer.__dict__['forward'] = partial(_forward, layer, layer.forward, where)",
        'continue',
        'tests/test_models/test_algorithms/test_missing_operator.py',
    ),
    # files and long runs
    'checkpoints are read without running code': Mutation(
        'mmkd/compat.py',
        'torch.load(file, map_location=map_location, weights_only=True)',
        'torch.load(file, map_location=map_location, weights_only=False)',
        'tests/test_compat.py',
        'hostile or plain_pickle',
    ),
    'growth of a long run is judged': Mutation(
        'mmkd/testing/long_run.py',
        'if last[index] > first[index] + slack:',
        'if False:',
        'tests/test_testing/test_long_run.py',
        'kept or is_found or pile or hook_keeps',
    ),
}


def copy_tree(target: Path) -> None:
    """What git tracks, as it is in the working tree."""
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def verdict(mutation: Mutation, tree: Path) -> tuple[str, str]:
    """Whether the tests fail without the code, and pytest's last line; the tree is as before afterwards."""
    file = tree / mutation.file
    whole = file.read_text()
    file.write_text(whole.replace(mutation.old, mutation.new))
    words = ['-q', '-x', '-p', 'no:xdist', '-p', 'no:cacheprovider', mutation.test]
    words += ['-k', mutation.chosen] if mutation.chosen else []
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', *words],
            cwd=tree,
            env={**os.environ, 'PYTHONPATH': str(tree), 'PYTHONDONTWRITEBYTECODE': '1'},
            capture_output=True,
            text=True,
        )
    finally:
        file.write_text(whole)
    code = max(done.returncode, -1)  # below 0: the process itself ended
    result = {-1: CAUGHT, 0: NOT_CAUGHT, 1: CAUGHT, 5: NO_TEST}.get(code, f'ERROR {code}')
    return result, (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]


def main(names: list[str]) -> int:
    """Try the mutations of these names, or all; 1 where one was not caught."""
    unknown = [name for name in names if name not in MUTATIONS]
    if unknown:
        sys.exit(f'No mutation {unknown[0]!r}; there are: ' + '; '.join(MUTATIONS))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        for name in names or MUTATIONS:
            start = time.time()
            result, line = verdict(MUTATIONS[name], Path(folder))
            results.append(result)
            print(f'{result}: {name}: {line} ({time.time() - start:.0f} s)', flush=True)
    print(f'{results.count(CAUGHT)} of {len(results)} caught')
    return int(results.count(CAUGHT) < len(results))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
