"""The table of learning rates in docs/results.md says what the stores in docs/results/rates say."""

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / 'docs'
STORES = sorted((DOCS / 'results' / 'rates').glob('*.json'))
WITHOUT_A_STORE = {('RetinaNet, student', 0.002), ('YOLOX, student', 0.002), ('YOLOX, teacher', 0.001)}


def table() -> dict[tuple[str, float], str]:
    """Text of each filled cell, by the row's name and the learning rate."""
    text = (DOCS / 'results.md').read_text(encoding='utf-8')
    lines = text[text.index('| peak learning rate |') :].split('\n\n')[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)
    return {
        (row[0], float(rate)): cell for row in rows for rate, cell in zip(head[1:], row[1:], strict=True) if cell != '-'
    }


def cell_of(path: Path) -> tuple[tuple[str, float], str]:
    """The row and rate of a store, by what it says of itself, and the scores of its plain runs."""
    store = json.loads(path.read_text(encoding='utf-8'))
    setting = store['setting']
    role = 'teacher' if store['identity']['student'] == store['identity']['teacher'] else 'student'
    epochs = '' if setting['epochs'] == 24 else f', {setting["epochs"]} epochs'
    runs = sorted((run['seed'], run['metrics']['AP']) for run in store['runs'] if run['arm'] == 'plain')
    assert setting['data'] == 'bccd (held-back training images)'
    assert [seed for seed, _ in runs] in ([0], [0, 2])
    family = setting['student'].replace('FasterRCNN', 'Faster R-CNN')
    return (f'{family}, {role}{epochs}', setting['lr']), ', '.join(f'{100 * ap:.1f}' for _, ap in runs)


def test_the_table_is_that_of_the_stores():
    found = dict(map(cell_of, STORES))
    assert len(found) == len(STORES) >= 12
    shown = table()
    assert shown.keys() - found.keys() == WITHOUT_A_STORE
    assert {key: shown[key] for key in found} == found


def test_the_cells_of_an_earlier_search_are_its_own():
    runs = json.loads((DOCS / 'results' / 'bccd_yolox_search.json').read_text(encoding='utf-8'))['runs']
    score = {(run['arm'], run['seed']): f'{100 * run["metrics"]["AP"]:.1f}' for run in runs}
    assert table()['YOLOX, student', 0.002] == f'{score["plain", 0]}, {score["plain", 2]}'
    assert table()['YOLOX, teacher', 0.001] == score['teacher', 0]


def test_a_store_is_found_under_the_name_that_it_describes():
    for path in STORES:
        (row, rate), _ = cell_of(path)
        family, role, *longer = row.lower().replace(' epochs', '').replace(' r-cnn', '-rcnn').split(', ')
        assert path.stem == f'{family}_{role}_{"".join(longer) or 24}_{rate:g}'
