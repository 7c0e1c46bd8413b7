import matplotlib.image
import numpy as np
import pytest
import torch

from mmkd.visualization.curves import curve_figure, mean_curve
from mmkd.visualization.detections import Boxes, detection_figure
from mmkd.visualization.features import activity_map, feature_figure
from mmkd.visualization.style import COLOURS, colour, save_figure

_IMAGE = np.full((30, 50, 3), 128, np.uint8)


def _boxes(count, scores=True):
    corners = np.tile([[5.0, 5.0, 20.0, 25.0]], (count, 1))
    return Boxes(corners, np.arange(count), np.linspace(0.1, 0.9, count) if scores else None)


def test_mean_is_taken_at_the_epochs_that_all_seeds_have():
    epochs, mean = mean_curve([[(1, 0.1), (2, 0.2), (3, 0.9)], [(1, 0.3), (2, 0.6)]])
    assert epochs.tolist() == [1, 2]
    assert mean == pytest.approx([0.2, 0.4])


def test_curves_have_a_bold_line_an_arm_and_a_thin_one_a_seed():
    figure = curve_figure({'plain': [[(1, 0.1), (2, 0.2)]] * 3, 'ssim': [[(1, 0.2)]]}, title='t', y_label='AP')
    axes = figure.axes[0]
    assert len(axes.lines) == 3 + 1 + 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['plain (3 seeds)', 'ssim']
    assert axes.get_ylabel() == 'AP' and axes.get_xlabel() == 'epoch' and axes.get_title() == 't'


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match='at least one point'):
        curve_figure({'plain': [[]]}, title='t', y_label='AP')


def test_activity_has_mean_one_and_keeps_its_shape():
    found = activity_map(torch.randn(7, 3, 5))
    assert found.shape == (3, 5)
    assert found.mean() == pytest.approx(1.0)


def test_activity_does_not_depend_on_the_magnitude_or_on_repeated_channels():
    feature = torch.randn(4, 3, 5)
    np.testing.assert_allclose(activity_map(feature), activity_map(100 * feature), rtol=1e-5)
    np.testing.assert_allclose(activity_map(feature), activity_map(torch.cat([feature, feature])), rtol=1e-6)


def test_activity_of_silence_is_one_everywhere():
    assert (activity_map(torch.zeros(2, 3, 4)) == 1).all()


def test_activity_refuses_a_batch():
    with pytest.raises(ValueError, match=r'must be \(C, H, W\)'):
        activity_map(torch.zeros(1, 2, 3, 4))


def test_maps_of_one_level_share_one_scale():
    sharp = torch.zeros(1, 4, 6)
    sharp[0, 2, 3] = 1
    columns = {'teacher': [torch.ones(2, 4, 6), torch.ones(2, 2, 3)], 'student': [sharp, torch.rand(3, 2, 3)]}
    figure = feature_figure(_IMAGE, columns, levels=['p3', 'p4'])
    maps = [image for axes in figure.axes for image in axes.images if image.get_array().ndim == 2]
    for row in ((maps[0], maps[1]), (maps[2], maps[3])):
        assert row[0].get_clim() == row[1].get_clim()
    assert maps[0].get_clim() == (0, 24.0)
    assert sum(axes.get_ylabel() == 'activity / mean' for axes in figure.axes) == 2


def test_a_column_with_missing_levels_is_refused():
    with pytest.raises(ValueError, match="'student' must have 2 levels, got 1"):
        feature_figure(_IMAGE, {'student': [torch.ones(1, 2, 2)]}, levels=['p3', 'p4'])


def test_only_boxes_above_the_threshold_are_drawn_and_all_of_the_truth():
    columns = {'truth': [_boxes(5, scores=False)], 'plain': [_boxes(5)]}
    figure = detection_figure([_IMAGE], columns, classes=list('abcde'), threshold=0.5)
    assert [axes.get_title() for axes in figure.axes] == ['truth', 'plain']
    assert [len(axes.patches) for axes in figure.axes] == [5, 3]


def test_an_image_without_boxes_is_no_error():
    figure = detection_figure([_IMAGE], {'plain': [_boxes(0)]}, classes=['a'])
    assert not figure.axes[0].patches


def test_columns_must_cover_all_images():
    with pytest.raises(ValueError, match="'plain' must have one entry an image"):
        detection_figure([_IMAGE, _IMAGE], {'plain': [_boxes(1)]}, classes=['a'])


def test_colours_repeat_after_the_last():
    assert colour(len(COLOURS) + 2) == COLOURS[2]


def test_a_saved_figure_is_a_picture_in_a_new_folder(tmp_path):
    figure = curve_figure({'plain': [[(1, 0.1)]]}, title='t', y_label='AP')
    path = save_figure(figure, tmp_path / 'new' / 'a.png')
    assert matplotlib.image.imread(path).std() > 0.01
