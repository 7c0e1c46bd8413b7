import re
from html.parser import HTMLParser

import pytest

from mmkd.testing.html_report import html_page
from mmkd.testing.results import summarise
from mmkd.visualization.svg_plots import interval_plot, line_plot, nice_ticks

VOID = {'meta', 'br', 'line', 'circle', 'polyline'}


class _Tree(HTMLParser):
    """Checks that every element is closed, and collects tags and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _row(arm, seed, ap):
    curve = [{'epoch': 1, 'AP': ap / 2}, {'epoch': 2, 'AP': ap}]
    return {'arm': arm, 'seed': seed, 'metrics': {'AP': ap}, 'curve': curve, 'train_seconds': 9.0, 'peak_memory_mb': 5}


@pytest.fixture
def results():
    rows = [_row('teacher', 0, 0.5)]
    rows += [
        _row(arm, seed, 0.30 + 0.02 * seed + gain) for arm, gain in (('plain', 0), ('<b>', 0.01)) for seed in (0, 1, 2)
    ]
    setting = dict(data='cells & co', train_images=20, val_images=8, scale=[320, 240], epochs=2, batch=4, lr=0.002)
    setting |= dict(teacher_lr=0.001, teacher_epochs=2, seeds=[0, 1, 2], metrics=['AP'], percent=100.0, classes=['x'])
    setting |= dict(hardware='2 CPU cores', threads=1, date='2026-11-21', command='compare "a"')
    return {'setting': setting, 'arms': summarise(rows, ['AP'], {}), 'unfair': [], 'notes': ['a note'], 'runs': rows}


def test_the_page_needs_nothing_from_outside_and_is_well_formed(results):
    page = html_page([results, results])
    tree = _Tree(page)
    assert tree.open == []
    assert not re.search(r'(src|href|url)\s*[=(]|https?:|@import|<script', page)
    assert [tag for tag, _ in tree.tags].count('svg') == 4


def test_names_from_outside_stay_text(results):
    page = html_page([results])
    assert '<b>' not in page and '&lt;b&gt;' in page and 'cells &amp; co' in page


def test_the_page_says_scores_differences_seeds_setting_and_notes(results):
    text = ' '.join(_Tree(html_page([results])).text)
    for part in ('33.0 ± 5.0', '+1.0 ± 0.0', 'seed 2', '34.0', '2 CPU cores', 'a note', 'compare "a"', 'plain-time'):
        assert part in text


def test_unfair_and_missing_runs_and_few_seeds_are_warnings(results):
    def warnings(**changes):
        page = html_page([{**results, **changes}])
        return re.findall('<p class="warn">(.*?)</p>', page)

    assert warnings() == []
    found = warnings(unfair=['x: other batches'], missing=['y, seed 1'], setting={**results['setting'], 'seeds': [0]})
    assert found[:2] == ['Not comparable: x: other batches', 'Not finished: y, seed 1.']
    assert '1 seed' in found[2]


def test_an_arm_has_one_colour_in_both_plots(results):
    page = html_page([results])
    key = re.search(r'<i class="(s\d+)"></i>&lt;b&gt;', page)[1]
    assert re.search(rf'<line class="{key} bold"', page) and re.search(rf'<polyline class="{key} bold"', page)


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (-3.2, 7.7), (0, 0), (0.301, 0.302), (0, 24)])
def test_ticks_are_few_and_span_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert len(ticks) <= 8 and ticks == sorted(set(ticks))


def test_a_higher_score_is_drawn_higher():
    svg = line_plot({'a': [[(1, 0.0), (2, 10.0)]]}, y_label='AP')
    (x1, y1), (x2, y2) = (map(float, p.split(',')) for p in re.search(r'points="(\S+ \S+)"', svg)[1].split())
    assert x2 > x1 and y2 < y1


def test_a_gain_lies_right_of_the_line_at_zero():
    svg = interval_plot({'a': dict(mean=2.0, low=1.0, high=3.0, seeds=[2.0], colour=0)}, x_label='AP')
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', svg)[1])
    low, high = map(float, re.search(r'class="s0 bold" x1="([\d.]+)" x2="([\d.]+)"', svg).groups())
    assert zero < low < high


@pytest.mark.parametrize('draw', [lambda: line_plot({'a': [[]]}, y_label='y'), lambda: interval_plot({}, x_label='x')])
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match='at least one'):
        draw()
