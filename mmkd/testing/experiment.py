"""Arms x seeds: a fair comparison of detectors that differ in nothing but the method.

The teacher is trained once. Every other arm is trained once for each seed, and within a seed all arms start from the
same student and see the same batches; both are recorded and checked, not assumed. `mmkd.testing.training` runs it.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmengine.config import Config

from mmkd.datasets.kitti import KITTI_FOLDERS
from mmkd.engine.method_choice import method_file
from mmkd.testing.arms import Arm, parse_arm
from mmkd.testing.detection_data import DetectionData
from mmkd.testing.methods import TEACHER, distilled_model, is_plain, needs_teacher
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.runs import ExperimentError, Run, read_json, write_json

READINGS = 16  # of a diagnosis over a run


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Args:
        data: Data set.
        student: Model config of the student.
        teacher: Model config of the teacher.
        methods: Arms beside the teacher, such as `('plain', 'ssim')`; see `mmkd.testing.arms`.
        seeds: Of every arm but the teacher.
        schedule: Of every arm, the teacher included unless `teacher_schedule` is given.
        teacher_schedule: Of the teacher.
        teacher_seed: Of the teacher, whatever the seeds of the others are; None for that of the teacher that is there,
            else 0: more seeds must not need another teacher.
        diagnose: Measure what each distillation does (`mmkd.DiagnosisHook`) in the runs of the first seed; weights and
            scores are the same with and without.
    """

    data: DetectionData
    student: dict
    teacher: dict
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: Schedule
    teacher_schedule: Schedule | None = None
    teacher_seed: int | None = None
    diagnose: bool = False

    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        return {arm.name: arm for arm in map(parse_arm, self.methods)}

    def method(self, arm: str) -> str:
        """What an arm is trained with.

        Args:
            arm: Its name, or `teacher`.

        Returns:
            Stem of a method file, chosen by the heads of the pair; `plain`, `plain-time` and `teacher` as they are.
        """
        if arm == TEACHER:
            return TEACHER
        return method_file(self.arms()[arm].method, self.student, self.teacher)

    def is_diagnosed(self, run: Run) -> bool:
        """Whether a run measures what its distillation does: the first of every distilled arm, where asked for."""
        first = self.diagnose and run.arm != TEACHER and run.seed == self.seeds[0]
        return first and not is_plain(self.method(run.arm))

    def identity(self) -> dict:
        """What must not change between two calls with the same folder; methods and seeds may be added."""
        annotation = hashlib.sha256()
        for split in (self.data.train, self.data.val):
            for file in _annotations(split):
                with contextlib.suppress(OSError):
                    annotation.update(file.read_bytes())
        content = dict(
            data=self.data.name,
            annotations=annotation.hexdigest(),
            student=self.student,
            teacher=self.teacher,
            schedule=asdict(self.schedule),
            teacher_schedule=asdict(self.teacher_schedule or self.schedule),
        )
        return json.loads(json.dumps(content))


def _annotations(split: Mapping) -> list[Path]:
    """The files that say what is in a split: one, and with KITTI those of its frames."""
    file = Path(split['ann_file'])
    if file.suffix != '.txt' or not file.is_file():
        return [file]
    folder = Path(split.get('data_root') or '.') / KITTI_FOLDERS['label']
    return [file, *(folder / f'{frame}.txt' for frame in file.read_text(encoding='utf-8').split())]


def differences(identity: dict, found: dict, sides: tuple[str, str] = ('now', 'there')) -> list[str]:
    """What two experiments differ in.

    Args:
        identity: Of one.
        found: Of the other.
        sides: What to call the two.

    Returns:
        Names such as `schedule.epochs (24 now, 12 there)`; whole models are only named.
    """
    texts = []
    here, away = sides
    for key, now in identity.items():
        there = found.get(key)
        if now == there:
            continue
        if key.endswith('schedule') and isinstance(there, dict):
            texts += [f'{key}.{k} ({v} {here}, {there.get(k)} {away})' for k, v in now.items() if v != there.get(k)]
        elif key == 'data':
            texts.append(f'{key} ({now!r} {here}, {there!r} {away})')
        else:
            texts.append(key)
    return texts


def runs_of(experiment: Experiment, work_dir: Path) -> list[Run]:
    """All runs, in the order in which they are started: seed by seed, so that early stops leave whole pairs."""
    runs = [Run(TEACHER, experiment.teacher_seed or 0, work_dir / TEACHER)]
    for seed in experiment.seeds:
        runs += [Run(arm, seed, work_dir / arm / f'seed{seed}') for arm in experiment.arms()]
    return runs


def refuse_other_work_dir(experiment: Experiment, work_dir: Path) -> None:
    """Look whether the folder can be this experiment's; nothing is written.

    Args:
        experiment: The one to be run.
        work_dir: New, empty, or left by an earlier call for the same experiment.

    Raises:
        ExperimentError: Where it holds something else.
    """
    stamp = work_dir / 'experiment.json'
    if stamp.exists():
        differing = differences(experiment.identity(), read_json(stamp) or {})
        if differing:
            raise ExperimentError(
                f'{work_dir} holds another experiment: it differs in {", ".join(differing)}. '
                'Nothing was changed; choose another --work-dir, or delete that folder.'
            )
    elif work_dir.exists() and any(path.name != 'data' for path in work_dir.iterdir()):
        raise ExperimentError(f'{work_dir} is not empty and holds no experiment; choose another --work-dir.')


def claim_work_dir(experiment: Experiment, work_dir: Path) -> None:
    """Make the folder this experiment's, or refuse as `refuse_other_work_dir` does."""
    refuse_other_work_dir(experiment, work_dir)
    stamp = work_dir / 'experiment.json'
    if not stamp.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        write_json(stamp, experiment.identity())


def run_config(experiment: Experiment, run: Run, teacher: Run, epochs: int | None = None) -> Config:
    """The config that a run is trained with.

    Args:
        experiment: What is compared.
        run: One of its runs.
        teacher: The finished run of the teacher (not looked at for the teacher itself and for plain).
        epochs: Of an arm whose schedule is stretched.

    Returns:
        A whole MMEngine config.
    """
    arm = experiment.arms().get(run.arm, Arm(run.arm, run.arm))
    schedule, model = replace(experiment.schedule, lr=arm.lr or experiment.schedule.lr), experiment.student
    method = experiment.method(run.arm)
    if run.arm == TEACHER:
        schedule, model = experiment.teacher_schedule or schedule, experiment.teacher
    elif is_plain(method):
        schedule = replace(schedule, epochs=epochs or schedule.epochs)
    else:
        found = None
        if needs_teacher(method):
            found = dict(teacher=str(teacher.folder / 'config.py'), teacher_ckpt=teacher.checkpoint)
        model = arm.apply(distilled_model(experiment.student, method, found))
    cfg = training_config(model, experiment.data, schedule, run.seed)
    if needs_teacher(method):  # the teacher has been scored on the whole split, and its score is in the table
        cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', num_images=0)
    if experiment.is_diagnosed(run):
        steps = schedule.epochs * -(-experiment.data.counts[0] // schedule.batch)
        cfg.custom_hooks = [dict(type='mmkd.DiagnosisHook', interval=max(1, steps // READINGS), images=0)]
    return cfg


def arm_record(
    experiment: Experiment, run: Run, *, teacher_sha256: str | None = None, budget: dict | None = None
) -> dict:
    """What `arm.json` in the folder of a run says.

    Args:
        experiment: What is compared.
        run: One of its runs.
        teacher_sha256: Digest of the weights that it learns from, where it has a teacher.
        budget: Of an arm whose schedule is stretched: `epochs` and how they were found.

    Returns:
        `name`, `method` and `options` as written, `file`: the method file, `settings_sha256`: digest of what that file
        and the options say; `seed`, of the teacher alone: its folder does not tell; the rest where there is one.
    """
    arm = experiment.arms().get(run.arm, Arm(run.arm, run.arm))
    method = experiment.method(run.arm)
    record = {**asdict(arm), 'file': method, **(budget or {})}
    if method == TEACHER:
        record['seed'] = run.seed
    elif not is_plain(method):
        record['settings_sha256'] = _settings_digest(experiment, run.arm)
    if needs_teacher(method) and teacher_sha256:
        record['teacher_sha256'] = teacher_sha256
    return json.loads(json.dumps(record))


def _settings_digest(experiment: Experiment, arm: str) -> str:
    """Digest of a distilled arm's model config, but for where its teacher lies: a method file may change."""
    method = experiment.method(arm)
    nowhere = dict(teacher='', teacher_ckpt='')
    model = experiment.arms()[arm].apply(distilled_model(experiment.student, method, nowhere))
    return hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()[:12]


def refuse_other_arm(experiment: Experiment, run: Run, found: dict, where: str) -> None:
    """A finished run must be of the arm that its name means now.

    Args:
        experiment: What is compared.
        run: One of its runs.
        found: `arm.json` of the finished run, or its row in a store; empty where there is none.
        where: Place to name in the message.

    Raises:
        ExperimentError: Where it is another arm.
    """
    if not found.get('method'):
        return
    if run.arm == TEACHER and experiment.teacher_seed not in (None, found.get('seed', experiment.teacher_seed)):
        raise ExperimentError(
            f'{where} holds a teacher of seed {found["seed"]}, and --teacher-seed is {experiment.teacher_seed}: the '
            'runs of two teachers cannot be compared. Leave the option out, or choose another folder and store.'
        )
    arm = experiment.arms().get(run.arm, Arm(run.arm, run.arm))
    options = json.loads(json.dumps(arm.options))
    file = found.get('file', found['method'])  # before there was a choice, a method was its file
    if (file, found.get('options', [])) != (experiment.method(run.arm), options):
        now = experiment.method(run.arm)
        raise ExperimentError(
            f'{where} holds {run.arm!r} with the method file {file} and the options {found.get("options", [])}; now it '
            f'means {now} with {options}. Give the new arm another name (NAME=METHOD,KEY=VALUE,...), or name that very '
            f'file ({run.arm}={file}.py).'
        )
    settings = found.get('settings_sha256')  # not in rows of earlier releases
    if settings is not None and settings != _settings_digest(experiment, run.arm):
        raise ExperimentError(
            f'{where} holds {run.arm!r}, and the settings of the method file {file} have changed since: its runs '
            'cannot be averaged with new ones. Give the new arm another name (NAME=METHOD).'
        )
