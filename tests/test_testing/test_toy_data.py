import hashlib
import json

import cv2
import numpy as np
import pytest

from mmkd.testing import toy_data
from mmkd.testing.toy_data import TOY_CLASSES, copy_toy_data, draw_scene, make_toy_data

# Pixels and annotations of a set in 96x64 px that the generator made before it knew more than one mixture.
GOLDEN = 'a296d9309f102ea08676c461a6bcc643f7601334d69a353041a5f9c059f81a58'


def _files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_same_seed_gives_the_same_bytes(tmp_path):
    first = make_toy_data(tmp_path / 'a', train=3, val=2, seed=5)
    second = make_toy_data(tmp_path / 'b', train=3, val=2, seed=5)
    assert _files(first) == _files(second)


def test_train_images_do_not_depend_on_how_many_validation_images_there_are(tmp_path):
    few = _files(make_toy_data(tmp_path / 'few', train=3, val=1))
    many = _files(make_toy_data(tmp_path / 'many', train=3, val=4))
    same = [name for name in few if name.name.startswith('train_')]
    assert len(same) == 3
    assert all(few[name] == many[name] for name in same)


def test_no_validation_image_is_a_training_image(tmp_path):
    files = _files(make_toy_data(tmp_path, train=20, val=20))
    train = {content for name, content in files.items() if name.name.startswith('train_')}
    val = {content for name, content in files.items() if name.name.startswith('val_')}
    assert len(train) == len(val) == 20
    assert not train & val


def test_other_seed_gives_other_scenes():
    first, _ = draw_scene(np.random.default_rng(0), (96, 64))
    second, _ = draw_scene(np.random.default_rng(1), (96, 64))
    assert (first != second).mean() > 0.5


def test_every_box_lies_inside_its_image_and_holds_its_object(tmp_path):
    root = make_toy_data(tmp_path, train=30, val=1, size=(120, 80))
    content = json.loads((root / 'annotations' / 'train.json').read_text())
    images = {image['id']: image for image in content['images']}
    assert content['annotations']
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        assert min(x, y) >= 0 and x + w <= 120 and y + h <= 80 and min(w, h) >= 5
        assert annotation['area'] == w * h
        assert annotation['image_id'] in images
    for image in images.values():
        assert cv2.imread(str(root / 'images' / image['file_name'])).shape == (80, 120, 3)


def test_there_are_small_truncated_and_large_objects_of_every_class(tmp_path):
    root = make_toy_data(tmp_path, train=60, val=1, size=(192, 160))
    boxes = json.loads((root / 'annotations' / 'train.json').read_text())['annotations']
    for category in range(1, len(TOY_CLASSES) + 1):
        mine = [box['bbox'] for box in boxes if box['category_id'] == category]
        assert any(max(w, h) <= 18 for _, _, w, h in mine)
        assert any(min(w, h) >= 48 for _, _, w, h in mine)
        assert any(x == 0 or y == 0 or x + w == 192 or y + h == 160 for x, y, w, h in mine)


def test_classes_after_the_shapes_are_listed_without_objects(tmp_path):
    root = make_toy_data(tmp_path, train=8, val=1, classes=tuple('abcdefg'))
    content = json.loads((root / 'annotations' / 'train.json').read_text())
    assert [category['name'] for category in content['categories']] == list('abcdefg')
    assert {box['category_id'] for box in content['annotations']} == {1, 2, 3, 4}


def test_a_finished_set_is_left_as_it_is(tmp_path):
    root = make_toy_data(tmp_path, train=1, val=1)
    (root / 'images' / 'train_00001.png').write_bytes(b'touched')
    make_toy_data(tmp_path, train=1, val=1)
    assert (root / 'images' / 'train_00001.png').read_bytes() == b'touched'


def test_the_default_set_has_the_pixels_and_boxes_that_results_were_made_with(tmp_path):
    digest = hashlib.sha256()
    for name, content in sorted(_files(make_toy_data(tmp_path, train=2, val=1, size=(96, 64))).items()):
        if name.suffix == '.png':
            content = cv2.imread(str(tmp_path / name)).tobytes()
        digest.update(content)
    assert digest.hexdigest() == GOLDEN


def _areas(root, split='val'):
    content = json.loads((root / 'annotations' / f'{split}.json').read_text())
    return np.array([box['area'] for box in content['annotations']]), len(content['images'])


def test_small_mixture_has_many_objects_of_which_most_are_small_by_cocos_bounds(tmp_path):
    areas, images = _areas(make_toy_data(tmp_path, train=1, val=60, objects='small'))
    assert len(areas) / images > 12
    assert 0.7 < (areas <= 32**2).mean() < 0.85
    assert ((areas > 32**2) & (areas < 96**2)).sum() >= 100
    assert (areas >= 96**2).sum() >= 15


def test_small_mixture_is_deterministic_and_larger(tmp_path):
    first = make_toy_data(tmp_path / 'a', train=2, val=1, objects='small')
    assert _files(first) == _files(make_toy_data(tmp_path / 'b', train=2, val=1, objects='small'))
    assert cv2.imread(str(first / 'images' / 'train_00001.png')).shape == (256, 320, 3)


def test_refuses_a_folder_with_the_other_mixture(tmp_path):
    make_toy_data(tmp_path, train=1, val=1, objects='small')
    with pytest.raises(FileExistsError, match='another toy set'):
        make_toy_data(tmp_path, train=1, val=1)


def test_refuses_an_unknown_mixture(tmp_path):
    with pytest.raises(ValueError, match=r"objects must be one of \['mixed', 'small'\], got 'smal'; nearest: small"):
        make_toy_data(tmp_path, objects='smal')


def test_refuses_a_folder_with_another_set(tmp_path):
    make_toy_data(tmp_path, train=1, val=1, seed=0)
    with pytest.raises(FileExistsError, match='another toy set'):
        make_toy_data(tmp_path, train=1, val=1, seed=1)


@pytest.mark.parametrize('wrong', [dict(train=0), dict(val=0), dict(size=(96, 16)), dict(classes=())])
def test_refuses_impossible_sizes(tmp_path, wrong):
    with pytest.raises(ValueError, match='at least 1 image, 32 px and 1 class'):
        make_toy_data(tmp_path, **wrong)


@pytest.mark.parametrize('name', ['annotations/train.json', 'images/mine.png', 'notes.txt'])
def test_refuses_a_folder_with_files_of_somebody_else_and_leaves_it_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('mine')
    with pytest.raises(FileExistsError, match='holds files of something else'):
        make_toy_data(tmp_path, train=1, val=1)
    assert {str(path): content for path, content in _files(tmp_path).items()} == {name: b'mine'}


def test_a_set_that_was_interrupted_is_finished_by_the_next_call(tmp_path, monkeypatch):
    def stop(rng, *args):
        if len(list((tmp_path / 'a' / 'images').iterdir())) == 2:
            raise KeyboardInterrupt
        return draw_scene(rng, *args)

    with monkeypatch.context() as patch:
        patch.setattr(toy_data, 'draw_scene', stop)
        with pytest.raises(KeyboardInterrupt):
            make_toy_data(tmp_path / 'a', train=3, val=1, size=(64, 48))
    assert list((tmp_path / 'a' / 'images').iterdir())
    again = make_toy_data(tmp_path / 'a', train=3, val=1, size=(64, 48))
    assert _files(again) == _files(make_toy_data(tmp_path / 'b', train=3, val=1, size=(64, 48)))


def test_a_copy_is_the_set(tmp_path):
    drawn = make_toy_data(tmp_path / 'a', train=2, val=1, size=(64, 48))
    copy_toy_data(drawn, tmp_path / 'b')
    assert _files(tmp_path / 'b') == _files(drawn)


@pytest.mark.parametrize(('objects', 'text'), [('mixed', 'has 1 to 10 shapes'), ('small', 'has 7 to 24')])
def test_scenes_keep_within_the_counts_that_are_told(objects, text):
    assert text in toy_data.__doc__
    least, most = (int(word) for word in text.split() if word.isdigit())
    rng = np.random.default_rng(3)
    counts = [len(draw_scene(rng, toy_data.MIXTURES[objects].size, 4, objects)[1]) for _ in range(6)]
    assert least <= min(counts) and max(counts) <= most
