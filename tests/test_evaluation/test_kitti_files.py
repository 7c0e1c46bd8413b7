"""The readers of KITTI files: what they accept, what they refuse, and where they say it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmkd.evaluation.kitti_files import parse, read_labels, read_results, read_split, result_line
from mmkd.evaluation.kitti_objects import TYPES, KittiFormatError, KittiObjects, from_frames

LABEL = 'Car 0.25 1 -1.57 10.5 20 30 40.25 1 2 3 4 5 6 0.1'
RESULT = LABEL + ' 0.75'


def parse_one(text, *, scored=False):
    blob = text if isinstance(text, bytes) else text.encode()
    return parse(['000007'], ['dir/000007.txt'], [blob], scored=scored)


def test_reads_the_fields_that_count():
    objects = parse_one(RESULT, scored=True)
    assert TYPES[objects.type[0]] == 'Car'
    assert (objects.truncation[0], objects.occlusion[0], objects.score[0]) == (0.25, 1, 0.75)
    assert objects.boxes.tolist() == [[10.5, 20, 30, 40.25]]
    assert np.isnan(parse_one(LABEL).score).all()


def test_frames_keep_their_order_and_empty_ones_stay():
    blobs = [f'{LABEL}\n{LABEL}\n'.encode(), b'', b'\n\n', f'\n{LABEL}'.encode()]
    objects = parse(list('abcd'), list('abcd'), blobs, scored=False)
    assert objects.names == ('a', 'b', 'c', 'd')
    assert objects.frame.tolist() == [0, 0, 3]


@pytest.mark.parametrize(
    'text',
    [
        LABEL,
        LABEL + '\n',
        '\n' + LABEL + '\r\n\r\n',
        '\ufeff' + LABEL,
        '  ' + LABEL.replace(' ', '\t') + ' ',
        LABEL.upper(),
    ],
)
def test_accepts_line_ends_marks_white_space_and_case(text):
    expected, objects = parse_one(LABEL), parse_one(text)
    assert objects.boxes.tolist() == expected.boxes.tolist()
    assert objects.type.tolist() == expected.type.tolist()


def test_no_file_and_only_empty_files_are_no_objects():
    assert len(parse([], [], [], scored=True)) == 0
    assert parse(['a'], ['a'], [b''], scored=True).boxes.shape == (0, 4)


def change(field, value, line=LABEL):
    words = line.split()
    words[field] = value
    return ' '.join(words)


BAD_LABELS = {
    'expected 15 fields, found 14': LABEL.rsplit(' ', 1)[0],
    'expected 15 fields, found 16': RESULT,
    'expected 15 fields, found 17': RESULT + ' 1',
    "unknown type 'Bus'; the types are Car": change(0, 'Bus'),
    r"field 2 \(truncation\) is not a finite number: 'x'": change(1, 'x'),
    r"field 5 \(x1\) is not a finite number: 'nan'": change(4, 'nan'),
    r"field 8 \(y2\) is not a finite number: 'inf'": change(7, 'inf'),
    r"field 9 \(h\) is not a finite number: '-Infinity'": change(8, '-Infinity'),
    r"field 6 \(y1\) is not a finite number: '1_0'": change(5, '1_0'),
    r"field 7 \(x2\) is not a finite number: '0x1f'": change(6, '0x1f'),
    r"field 5 \(x1\) is not a finite number: '1,5'": change(4, '1,5'),
    'the box is reversed': change(6, '10.4'),
    'the box is reversed: x2 < x1 or y2 < y1': change(7, '19'),
    'the occlusion is none of -1, 0, 1, 2, 3': change(2, '4'),
    'the occlusion is none of': change(2, '0.5'),
    'the truncation is neither in 0..1 nor -1': change(1, '1.5'),
    'the truncation is neither': change(1, '-0.5'),
    'a box coordinate is beyond 1e': change(6, '1e7'),
}


@pytest.mark.parametrize('message', BAD_LABELS)
def test_refuses_with_file_and_line(message):
    text = f'{LABEL}\n\n{BAD_LABELS[message]}\n{LABEL}\n'
    with pytest.raises(KittiFormatError, match=rf'^dir/000007\.txt:3: {message}'):
        parse_one(text)


def test_results_need_sixteen_fields_and_a_finite_score():
    with pytest.raises(KittiFormatError, match=r':1: expected 16 fields, found 15'):
        parse_one(LABEL, scored=True)
    with pytest.raises(KittiFormatError, match=r":1: field 16 \(score\) is not a finite number: 'NaN'"):
        parse_one(LABEL + ' NaN', scored=True)


def test_results_may_have_any_score_and_negative_coordinates():
    objects = parse_one(change(4, '-12.5', LABEL) + ' -3e2', scored=True)
    assert objects.score.tolist() == [-300]
    assert objects.boxes[0, 0] == -12.5
    assert len(parse_one(change(2, '-1', change(1, '-1', RESULT)), scored=True)) == 1


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(KittiFormatError, match=r'000007\.txt:1: '):
        parse_one(LABEL.encode('utf-16'))


def test_the_second_bad_file_is_named():
    with pytest.raises(KittiFormatError, match=r'^two:2: expected 15 fields, found 1$'):
        parse(['1', '2'], ['one', 'two'], [LABEL.encode(), f'{LABEL}\nCar'.encode()], scored=False)


def test_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'000009\.txt'):
        read_labels(tmp_path, ['000009'])


def test_files_are_read_by_name(tmp_path):
    (tmp_path / 'b.txt').write_text(RESULT)
    (tmp_path / 'a.txt').write_text('')
    objects = read_results(tmp_path, ['b', 'a'])
    assert objects.names == ('b', 'a')
    assert objects.frame.tolist() == [0]


def test_split_skips_blank_lines_and_refuses_doubles(tmp_path):
    split = tmp_path / 'val.txt'
    split.write_bytes(b'\xef\xbb\xbf000001\r\n\r\n 000003 \r\n')
    assert read_split(split) == ['000001', '000003']
    split.write_text('000001\n000002\n000001\n')
    with pytest.raises(KittiFormatError, match=r"val\.txt:3: frame '000001' was already named in line 1"):
        read_split(split)
    split.write_text('000001 -1\n')
    with pytest.raises(KittiFormatError, match=r'val\.txt:1: expected one frame name'):
        read_split(split)
    split.write_text('\n')
    with pytest.raises(ValueError, match='names no frame'):
        read_split(split)


finite = st.floats(-1e5, 1e5)


@given(
    st.lists(st.tuples(st.sampled_from(TYPES), finite, finite, finite, finite, st.floats(allow_nan=False)), max_size=5)
)
def test_written_lines_read_back_exactly(rows):
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for _, a, b, c, d, _ in rows]
    scores = [min(max(row[-1], -1e300), 1e300) for row in rows]
    lines = [result_line(row[0], box, score) for row, box, score in zip(rows, boxes, scores, strict=True)]
    objects = parse_one(''.join(lines), scored=True)
    assert objects.boxes.tolist() == boxes
    assert objects.score.tolist() == scores
    assert [TYPES[code] for code in objects.type] == [row[0] for row in rows]


def slow_rows(text, fields):
    """The plain reading of a file, or None where a rule is broken."""
    rows = []
    for line in text.removeprefix(b'\xef\xbb\xbf').split(b'\n'):
        words = line.split()
        if not words:
            continue
        try:
            numbers = [float(word) for word in words[1:]]
        except ValueError:
            return None
        kind = words[0].decode('latin1').lower()
        plain = all(b'_' not in word for word in words[1:]) and np.isfinite(numbers).all()
        if len(words) != fields or kind not in [name.lower() for name in TYPES] or not plain:
            return None
        x1, y1, x2, y2 = numbers[3:7]
        if x2 < x1 or y2 < y1 or max(map(abs, numbers[3:7])) > 1e6:
            return None
        truncation, occlusion = numbers[:2]
        if fields == 15 and (occlusion not in (-1, 0, 1, 2, 3) or not (0 <= truncation <= 1 or truncation == -1)):
            return None
        rows.append(numbers[3:7])
    return rows


word = st.sampled_from(
    [
        b'0',
        b'1',
        b'-1',
        b'2.5',
        b'30',
        b'1e2',
        b'nan',
        b'-inf',
        b'1_0',
        b'',
        b'Car',
        b'x',
        b'\xff',
        b'\r',
        b'\x00',
        b'1e9',
        b'.',
    ]
)
line = st.one_of(
    st.just(LABEL.encode()),
    st.just(RESULT.encode()),
    st.builds(lambda kind, words: b' '.join([kind, *words]), st.sampled_from([b'Car', b'VAN', b'Bus', b'dontcare']),
              st.one_of(st.lists(word, min_size=14, max_size=15), st.just([b'0'] * 14), st.just([b'1'] * 15))),
    st.binary(max_size=30),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(line, max_size=4), st.booleans(), st.sampled_from([b'', b'\xef\xbb\xbf']))
def test_fuzzed_files_are_read_as_the_plain_reader_does_or_refused(lines, scored, mark):
    text = mark + b'\n'.join(lines)
    expected = slow_rows(text, 16 if scored else 15)
    if expected is None:
        with pytest.raises(KittiFormatError, match=r'^dir/000007\.txt:\d+: '):
            parse_one(text, scored=scored)
    else:
        assert parse_one(text, scored=scored).boxes.tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(blob):
    try:
        assert isinstance(parse_one(blob), KittiObjects)
    except KittiFormatError as error:
        assert str(error).startswith('dir/000007.txt:')


FRAME = {'name': ['Car'], 'bbox': [[0, 0, 1, 1]], 'truncated': [0], 'occluded': [0]}


def test_frames_of_arrays_equal_files():
    frame = {'name': ['car'], 'bbox': [[10.5, 20, 30, 40.25]], 'truncated': [0.25], 'occluded': [1]}
    ours, read = from_frames([frame], ['000007'], scored=False), parse_one(LABEL)
    assert ours.names == read.names
    for column in ('frame', 'type', 'truncation', 'occlusion', 'boxes'):
        assert getattr(ours, column).tolist() == getattr(read, column).tolist()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'bbox': [[0, 0, -1, 1]]}, r'^000000:1: the box is reversed'),
        ({'bbox': [[0, 0, np.nan, 1]]}, r'^000000:1: a value is NaN or infinite'),
        ({'occluded': [7]}, r'^000000:1: the occlusion'),
        ({'name': ['Bus']}, r"unknown KITTI type 'Bus'"),
        ({'name': ['Car', 'Car']}, 'differ in length'),
    ],
)
def test_frames_of_arrays_obey_the_same_rules(changes, message):
    with pytest.raises(ValueError, match=message):
        from_frames([{**FRAME, **changes}], scored=False)


def test_frames_of_arrays_say_which_key_is_missing():
    with pytest.raises(ValueError, match=r"frame 000001: the keys \['score'\] are missing"):
        from_frames([{**FRAME, 'score': [1]}, FRAME], scored=True)
    with pytest.raises(ValueError, match='no frame was given'):
        from_frames([], scored=True)
