"""Results on one page that opens without a network: style, plots and numbers are all inside the file."""

from collections.abc import Sequence
from html import escape

from mmkd.testing.diagnosis_table import diagnosis_rows
from mmkd.testing.methods import PLAIN
from mmkd.testing.store import commands
from mmkd.testing.tables import caption, notes, open_points, table_rows
from mmkd.visualization.svg_plots import SERIES, interval_plot, line_plot

# Light and dark values of the colours of the arms: Okabe and Ito's, lighter on a dark ground.
_LIGHT = ('#0072b2', '#d55e00', '#009e73', '#b0518a', '#a36a00', '#2f8fc4', '#222222', '#6b6b1f', '#7a4fbf')
_LIGHT += ('#8a3b12', '#3f7d20', '#c2185b')
_DARK = ('#56b4e9', '#ff8a3d', '#2fd3a0', '#e79cc6', '#f0b429', '#8fd0f5', '#f2f2f2', '#cfcf5b', '#b79cf0')
_DARK += ('#d9a07d', '#9fd67f', '#ff7fb0')

_STYLE = """
:root{--ground:#fff;--ink:#1b1b1b;--dim:#5a5a5a;--line:#d9d9d9;--soft:#f5f6f7;--warn:#9c1c1c;--warnground:#fdeceb;LIGHT}
@media(prefers-color-scheme:dark){:root{--ground:#16181b;--ink:#e9e9e9;--dim:#a9adb3;--line:#3a3f45;--soft:#202327;
--warn:#ffb4ab;--warnground:#3a1f1d;DARK}}
*{box-sizing:border-box}body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.3rem;
margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}h3{font-size:1.05rem;margin:1.6rem 0 .4rem}
.dim,figcaption{color:var(--dim);font-size:.9rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;
font-variant-numeric:tabular-nums}th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;
white-space:nowrap}th:first-child,td:first-child{text-align:left}thead th{background:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.95rem}dt{color:var(--dim)}dd{margin:0}
.warn{color:var(--warn);background:var(--warnground);border-left:4px solid var(--warn);padding:.5rem .8rem}
figure{margin:.5rem 0}svg{display:block;width:100%;height:auto;max-width:44rem}.grid{stroke:var(--line);stroke-width:1}
.zero{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}.label{fill:var(--dim);font:12px system-ui,sans-serif}
.bold{fill:none;stroke-width:2.4}.thin{fill:none;stroke-width:1;opacity:.35}.mark{stroke:none}.seed{stroke:none;opacity:.55}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem;padding:0;list-style:none}.key i{display:inline-block;
width:.8rem;height:.8rem;border-radius:50%;margin-right:.35rem;vertical-align:-1px}code{font-size:.85rem}
SERIES"""


def html_page(results: Sequence[dict], title: str = 'Comparison of distillation methods') -> str:
    """Everything on one page.

    Args:
        results: Of `mmkd.testing.results.collect_results`, one a section.
        title: Of the page.

    Returns:
        The text of the file.
    """
    sections = ''.join(_section(one) for one in results)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><style>{_style()}</style></head><body>'
        f'<h1>{escape(title)}</h1>{sections}{_HOW_TO_READ}</body></html>\n'
    )


def _style() -> str:
    def variables(colours: Sequence[str]) -> str:
        return ''.join(f'--s{index}:{colour};' for index, colour in enumerate(colours))

    series = ''.join(
        f'.s{i}{{stroke:var(--s{i})}}.s{i}.mark,.s{i}.seed{{fill:var(--s{i})}}i.s{i}{{background:var(--s{i})}}'
        for i in range(SERIES)
    )
    text = _STYLE.replace('LIGHT', variables(_LIGHT)).replace('DARK', variables(_DARK))
    return text.replace('SERIES', series)


def _section(results: dict) -> str:
    setting = results['setting']
    pair = ' '.join(str(setting[key]) for key in ('data', 'student') if setting.get(key))
    parts = [f'<h2>{escape(pair)}</h2>', f'<p>{escape(caption(results))}.</p>', _warnings(results)]
    parts += ['<h3>Scores</h3>', _table(*table_rows(results)), _paragraphs(notes(results)[2:])]
    parts += [_differences(results), _curves(results)]
    heads, body = diagnosis_rows(results)
    if body:
        parts.append(_folded('What each distillation did', _table(heads, body), folded=True))
    parts += ['<h3>Each seed</h3>', _table(*_by_seed(results)), '<h3>Setting</h3>', _setting(results)]
    return ''.join(parts)


def _warnings(results: dict) -> str:
    texts = [f'Not comparable: {text}' for text in results['unfair']]
    texts += open_points(results)
    seeds = len(results['setting']['seeds'])
    if seeds < 3:
        texts.append(f'{seeds} seed{"s" * (seeds > 1)} only: differences of this size can be chance.')
    return ''.join(f'<p class="warn">{escape(text)}</p>' for text in texts)


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = ''.join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    rows = ''.join('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in cells) + '</tr>' for cells in body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _paragraphs(texts: Sequence[str]) -> str:
    return ''.join(f'<p class="dim">{escape(text)}</p>' for text in texts)


def _differences(results: dict) -> str:
    """The paired differences of every score, the main one open."""
    percent, colours = results['setting']['percent'], _colours(results)
    parts = []
    for name in results['setting']['metrics']:
        base = {row['seed']: row['metrics'][name] for row in results['runs'] if row['arm'] == PLAIN}
        rows = {}
        for arm, found in results['arms'].items():
            value = found.get(f'{name} - plain')
            if value:
                mine = [row for row in results['runs'] if row['arm'] == arm and row['seed'] in base]
                seeds = [percent * (row['metrics'][name] - base[row['seed']]) for row in mine]
                scaled = {key: None if value[key] is None else percent * value[key] for key in ('mean', 'low', 'high')}
                rows[arm] = {**scaled, 'seeds': seeds, 'colour': colours[arm]}
        if rows:
            text = 'Large dot: mean over seeds; bar: its 95 % t-interval; small dots: the seeds. Right of 0 is better.'
            plot = interval_plot(rows, x_label=f'{name} - plain, points')
            figure = f'<figure>{plot}<figcaption>{text}</figcaption></figure>'
            parts.append(_folded(f'Difference to plain: {name}', figure, folded=bool(parts)))
    return ''.join(parts)


def _curves(results: dict) -> str:
    """Every score over the epochs, the main one open."""
    percent, parts = results['setting']['percent'], []
    for name in results['setting']['metrics']:
        curves = {}
        for arm in results['arms']:
            mine = [row['curve'] for row in results['runs'] if row['arm'] == arm]
            curves[arm] = [[(p['epoch'], percent * p[name]) for p in curve if name in p] for curve in mine]
        if any(curve for seeds in curves.values() for curve in seeds):
            figure = f'<figure>{_key(results)}{line_plot(curves, y_label=name)}</figure>'
            parts.append(_folded(f'{name} over epochs', figure, folded=bool(parts)))
    return ''.join(parts)


def _folded(title: str, content: str, *, folded: bool) -> str:
    if folded:
        return f'<details><summary>{escape(title)}</summary>{content}</details>'
    return f'<h3>{escape(title)}</h3>{content}'


def _colours(results: dict) -> dict[str, int]:
    return {arm: index for index, arm in enumerate(results['arms'])}


def _key(results: dict) -> str:
    entries = [f'<li><i class="s{i % SERIES}"></i>{escape(arm)}</li>' for arm, i in _colours(results).items()]
    return f'<ul class="key">{"".join(entries)}</ul>'


def _by_seed(results: dict) -> tuple[list[str], list[list[str]]]:
    """The main score of every run."""
    name, percent = results['setting']['metrics'][0], results['setting']['percent']
    seeds = results['setting']['seeds']
    body = []
    for arm in results['arms']:
        scores = {row['seed']: f'{percent * row["metrics"][name]:.1f}' for row in results['runs'] if row['arm'] == arm}
        body.append([arm, *(scores.get(seed, '-') for seed in seeds)])
    return [name, *(f'seed {seed}' for seed in seeds)], body


def _setting(results: dict) -> str:
    setting = results['setting']
    shown = {
        'data': f'{setting["data"]} ({", ".join(setting["classes"])})',
        'images': f'{setting["train_images"]} training, {setting["val_images"]} validation',
        'size': f'{setting["scale"][0]} x {setting["scale"][1]} px',
        'student, teacher': f'{setting.get("student", "-")}, {setting.get("teacher", "-")}',
        'schedule': f'{setting["epochs"]} epochs, batch {setting["batch"]}, AdamW, learning rate {setting["lr"]:g}',
        'teacher’s schedule': f'{setting["teacher_epochs"]} epochs, learning rate {setting["teacher_lr"]:g}',
        'seeds': ', '.join(str(seed) for seed in setting['seeds']),
        'hardware': f'{setting["hardware"]}; {setting["threads"]} thread(s) a run',
        'date': setting['date'],
    }
    entries = ''.join(f'<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>' for key, value in shown.items())
    typed = ''.join(f'<dt>command</dt><dd><code>{escape(command)}</code></dd>' for command in commands(results))
    return f'<dl>{entries}{typed}</dl>'


_HOW_TO_READ = """<h2>How to read this</h2>
<ul>
<li>For one seed all arms begin with the same student and see the same images in the same order; digests are
compared, and a run that differs is named above in red.</li>
<li>“- plain” is the mean of the differences seed by seed. Where its interval holds 0, the seeds do not show a
difference; that is not a proof that there is none.</li>
<li>The score is that of the last epoch. An arm whose curve is still rising there was not trained to its end, and a
gain may be faster training rather than a better student.</li>
<li>“plain-time” is plain training for as long as distillation takes: a method should beat this arm too.</li>
<li>Many arms are compared at once: of twenty intervals about one excludes 0 by chance.</li>
<li>One data set and one pair of detectors say little about another.</li>
</ul>"""
