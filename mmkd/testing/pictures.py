"""Pictures of a finished experiment: curves, detections side by side, feature maps before and after."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mmkd.testing.experiment import Experiment, Run
from mmkd.testing.measure import collate, load_student, validation_samples
from mmkd.testing.methods import PLAIN, TEACHER
from mmkd.visualization.curves import curve_figure
from mmkd.visualization.detections import Boxes, detection_figure
from mmkd.visualization.features import feature_figure
from mmkd.visualization.style import save_figure


def draw_pictures(
    experiment: Experiment, runs: Sequence[Run], folder: Path, *, images: int = 4, levels: int = 3
) -> list[Path]:
    """Draw everything.

    Args:
        experiment: What was compared.
        runs: Its finished runs; detections and features are those of the first seed.
        folder: Where to put the files.
        images: Validation images for the detections.
        levels: Levels of the pyramid, from the finest, for the features.

    Returns:
        The files.
    """
    first = {run.arm: run for run in reversed(runs) if run.result}
    shown = [TEACHER, PLAIN, *(arm for arm in experiment.methods if arm != PLAIN)]
    networks = {arm: load_student(*_of(first[arm])) for arm in shown if arm in first}
    samples = validation_samples(first[TEACHER].folder / 'config.py', images)
    files = draw_curves(experiment, runs, folder)
    files.append(_draw_detections(experiment, networks, samples, folder))
    if PLAIN in first:
        torch.manual_seed(first[PLAIN].seed)  # as the Runner does: the very student the runs began with
        before = load_student(first[PLAIN].folder / 'config.py')
        files.append(_draw_features(experiment, networks, before, samples[0], folder, levels))
    return files


def draw_curves(experiment: Experiment, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Every score over the epochs.

    Args:
        experiment: What was compared.
        runs: Its finished runs.
        folder: Where to put the files.

    Returns:
        The files, one a score.
    """
    files = []
    for name in experiment.data.metrics.values():
        curves: dict[str, list] = {}
        for run in runs:
            if run.result:
                curves.setdefault(run.arm, []).append([(p['epoch'], p[name]) for p in run.result['curve']])
        title = f'{name} on the validation images of {experiment.data.name}'
        files.append(save_figure(curve_figure(curves, title=title, y_label=name), folder / f'{_slug(name)}_curve.png'))
    return files


def _draw_detections(experiment: Experiment, networks: dict[str, nn.Module], samples: list[dict], folder: Path) -> Path:
    pictures = [_picture(sample) for sample in samples]
    columns = {'ground truth': [_ground_truth(sample) for sample in samples]}
    for arm, network in networks.items():
        columns[arm] = [_detect(network, sample) for sample in samples]
    figure = detection_figure(pictures, columns, classes=experiment.data.classes)
    return save_figure(figure, folder / 'detections.png')


def _draw_features(
    experiment: Experiment, networks: dict[str, nn.Module], before: nn.Module, sample: dict, folder: Path, levels: int
) -> Path:
    columns = {'teacher': _features(networks[TEACHER], sample), 'student before': _features(before, sample)}
    for arm, network in networks.items():
        if arm != TEACHER:
            columns[f'student, {arm}'] = _features(network, sample)
    count = min([levels, *(len(maps) for maps in columns.values())])
    names = [
        f'level {index}: {"x".join(str(v) for v in columns["teacher"][index].shape[-2:])}' for index in range(count)
    ]
    columns = {name: maps[:count] for name, maps in columns.items()}
    title = f'{experiment.data.name}: pyramid features (mean of |channels|), one colour scale a row'
    return save_figure(feature_figure(_picture(sample), columns, levels=names, title=title), folder / 'features.png')


def _of(run: Run) -> tuple[Path, str]:
    return run.folder / 'config.py', (run.result or {})['checkpoint']


def _picture(sample: dict) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(sample['data_samples'].img_path), cv2.COLOR_BGR2RGB)


def _ground_truth(sample: dict) -> Boxes:
    truth = sample['data_samples'].gt_instances
    corners = truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes
    return Boxes(np.asarray(corners), np.asarray(truth.labels))


def _detect(network: nn.Module, sample: dict) -> Boxes:
    with torch.no_grad():
        found = network.test_step(collate(sample))[0].pred_instances
    return Boxes(found.bboxes.cpu().numpy(), found.labels.cpu().numpy(), found.scores.cpu().numpy())


def _features(network: nn.Module, sample: dict) -> list[Tensor]:
    with torch.no_grad():
        batch = network.data_preprocessor(collate(sample))
        return [level[0] for level in network.extract_feat(batch['inputs'])]


def _slug(name: str) -> str:
    return ''.join(letter if letter.isalnum() else '_' for letter in name).lower()
