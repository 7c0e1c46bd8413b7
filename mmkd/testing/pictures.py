"""Pictures of a finished experiment: curves, detections side by side, feature maps before and after."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from mmkd.testing.measure import collate, load_student, validation_samples
from mmkd.testing.methods import PLAIN, TEACHER
from mmkd.testing.runs import Run
from mmkd.visualization.curves import curve_figure
from mmkd.visualization.detections import Boxes, detection_figure
from mmkd.visualization.features import feature_figure
from mmkd.visualization.style import save_figure


def draw_pictures(
    results: dict, runs: Sequence[Run], folder: Path, *, images: int = 4, levels: int = 3, dataset: dict | None = None
) -> list[Path]:
    """Draw everything.

    Args:
        results: Of `mmkd.testing.results.collect_results`.
        runs: Its runs; detections and features are those of the first seed, of the arms whose weights are here.
        folder: Where to put the files.
        images: Validation images for the detections.
        levels: Levels of the pyramid, from the finest, for the features.
        dataset: Config of the validation set; that of the first run when None.

    Returns:
        The files.
    """
    first = {run.arm: run for run in reversed(runs) if run.checkpoint}
    shown = [arm for arm in dict.fromkeys([TEACHER, PLAIN, *(run.arm for run in runs)]) if arm in first]
    files = draw_curves(results, folder)
    if not shown:
        return files
    networks = {arm: load_student(*_of(first[arm])) for arm in shown}
    samples = validation_samples(first[shown[0]].folder / 'config.py', images, dataset)
    setting = results['setting']
    files.append(_draw_detections(setting, networks, samples, folder))
    if PLAIN in first and TEACHER in first:
        torch.manual_seed(first[PLAIN].seed)  # as the Runner does: the very student the runs began with
        before = load_student(first[PLAIN].folder / 'config.py')
        files.append(_draw_features(setting, networks, before, samples[0], folder, levels))
    return files


def draw_curves(results: dict, folder: Path) -> list[Path]:
    """Every score over the epochs.

    Args:
        results: Of `mmkd.testing.results.collect_results`.
        folder: Where to put the files.

    Returns:
        The files, a PNG and an SVG for each score.
    """
    files = []
    for name in results['setting']['metrics']:
        curves: dict[str, list] = {}
        for row in results['runs']:
            curves.setdefault(row['arm'], []).append([(p['epoch'], p[name]) for p in row['curve'] if name in p])
        if not any(curve for seeds in curves.values() for curve in seeds):
            continue
        title = f'{name} on the validation images of {results["setting"]["data"]}'
        figure = curve_figure(curves, title=title, y_label=name)
        files += [save_figure(figure, folder / f'{_slug(name)}_curve.{kind}') for kind in ('png', 'svg')]
    return files


def _draw_detections(setting: dict, networks: dict[str, nn.Module], samples: list[dict], folder: Path) -> Path:
    pictures = [_picture(sample) for sample in samples]
    columns = {'ground truth': [_ground_truth(sample) for sample in samples]}
    for arm, network in networks.items():
        columns[arm] = [_detect(network, sample) for sample in samples]
    figure = detection_figure(pictures, columns, classes=setting['classes'])
    return save_figure(figure, folder / 'detections.png')


def _draw_features(
    setting: dict, networks: dict[str, nn.Module], before: nn.Module, sample: dict, folder: Path, levels: int
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
    title = f'{setting["data"]}: pyramid features (mean of |channels|), one colour scale a row'
    return save_figure(feature_figure(_picture(sample), columns, levels=names, title=title), folder / 'features.png')


def _of(run: Run) -> tuple[Path, str | None]:
    return run.folder / 'config.py', run.checkpoint


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
