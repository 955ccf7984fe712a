"""The page as a whole: its formats, its figures, what it refuses, and what a browser and a printer make of it."""

import contextlib
import html.parser
import json
import os
import re
import shlex
import sqlite3
import xml.etree.ElementTree

import numpy as np
import pandas as pd
import pytest

import browser
import runs
import studies
from bhcnet_jax.records.database import Results
from bhcnet_jax.report import __main__ as report
from bhcnet_jax.report import page
from bhcnet_jax.report.sections import misread
from studies import make_report, numbers, section, text

FIGURES = {
    'roc', 'precision-recall', 'reliability', 'probabilities', 'decision', 'loss', 'accuracy', 'by-fold', 'by-seed',
    'ablations', 'parallel', 'accuracies',
}  # fmt: skip
SECTIONS = 12


def test_html_markdown_and_csv_say_the_same(real):
    board, in_html, in_markdown = numbers(real, 'leaderboard'), text(real, 'html'), section(real, 'Leaderboard')
    for row in board.itertuples():
        shown = page.Number(row.value, row.low, row.high, int(row.n), 'plain' if row.Index[1] == 'AUC' else 'percent')
        assert f'| {shown.bare} ({shown.interval}) |' in in_markdown
        assert f'<span>{shown.bare}<small>{shown.interval}</small>' in in_html
    heads = ('accuracy,\N{NO-BREAK SPACE}%', 'n = 48'), ('sensitivity,\N{NO-BREAK SPACE}%', 'n = 24'), ('AUC', 'n = 48')
    for name, of in heads:
        assert f'| {name} ({of}) |' in in_markdown
        assert f'{name}<small>{of}</small></th>' in in_html


class Page(html.parser.HTMLParser):
    """What a page loads, its open elements, and the text of every figure, table caption and heading."""

    VOID = ('meta', 'link', 'img', 'br', 'use')

    def __init__(self, source):
        super().__init__()
        self.loads, self.ids, self.open, self.texts, self.pictures = [], [], [], [], 0
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.loads += [value for name, value in attributes.items() if name in ('src', 'href', 'srcset', 'data')]
        self.pictures += tag == 'img'
        if 'id' in attributes:
            self.ids.append(attributes['id'])
        if tag in ('figure', 'caption', 'h1', 'h2'):
            self.texts.append((tag, []))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ('src', 'href')]
        self.ids += [value for name, value in attributes if name == 'id']

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.texts and {'figure', 'caption', 'h1', 'h2'} & set(self.open):
            self.texts[-1][1].append(data)


def test_the_page_loads_nothing_and_has_every_figure_and_section(real):
    source = text(real, 'html')
    found = Page(source)
    assert not found.open
    assert {each for each in found.loads if not each.startswith(('#', 'data:'))} == set()
    assert not re.search(r'@import|url\((?!#)|<script|<iframe', source)
    assert set(found.ids) >= FIGURES
    assert len(found.ids) == len(set(found.ids))
    assert source.count('<svg ') == len(FIGURES)
    assert [each for each in found.ids if re.fullmatch(r's\d+', each)] == [f's{n + 1}' for n in range(SECTIONS)]
    assert len(re.findall(r'\n## ', text(real))) == SECTIONS


PRINTED_TABLES = ("as printed", 'What cannot be right in the paper')  # words of the paper alone


def is_papers_own(caption):
    return any(words in caption for words in PRINTED_TABLES)


def test_everything_made_from_the_phantom_says_so_and_nothing_else(phantom):
    found = Page(text(phantom, 'html'))
    assert len(found.texts) > 25
    for tag, parts in found.texts:
        assert ('PHANTOM' in ''.join(parts)) != is_papers_own(''.join(parts)), (tag, parts)
    for svg in re.findall(r'<svg .*?</svg>', text(phantom, 'html'), re.DOTALL):
        assert 'PHANTOM' in re.sub(r'<svg [^>]*>', '', svg)  # drawn, not only said aloud
    tables = re.findall(r'\n\n([^\n]*)\n\n\|', text(phantom))
    assert len(tables) > 10 and sum(map(is_papers_own, tables)) == 2
    assert all(('PHANTOM' in title) != is_papers_own(title) for title in tables)
    rows = pd.read_csv(phantom / 'report.csv', keep_default_na=False)
    assert set(rows[rows.table != 'paper-alone'].mark) == {'PHANTOM: synthetic images'}
    assert set(rows[rows.table == 'paper-alone'].mark) == {''}


def test_each_figure_may_be_a_file_of_its_own(tmp_path):
    directories = studies.write(tmp_path, dataset='PHANTOM')
    make_report(tmp_path, *directories, f'--figures={tmp_path}')
    assert {path.stem for path in tmp_path.glob('*.svg')} == FIGURES
    for path in tmp_path.glob('*.svg'):
        root = xml.etree.ElementTree.parse(path).getroot()
        style = root[0]
        defined = set(re.findall(r'(--\w+):', style.text))
        assert root.tag.endswith('}svg') and style.tag.endswith('}style')
        assert float(root.get('width')) > 100 and float(root.get('height')) > 100
        assert set(re.findall(r'var\((--\w+)\)', path.read_text())) <= defined
        assert 'PHANTOM' in ''.join(root.itertext())


def test_a_report_on_real_images_does_not_say_phantom(real):
    assert 'PHANTOM' not in text(real, 'html') + text(real)


def test_images_that_are_left_out_are_said_to_be(real):
    assert '--no_images' in section(real, 'Misread images')
    assert Page(text(real, 'html')).pictures == 0


def test_a_section_without_data_names_the_command_that_makes_them(tmp_path):
    networks, _ = studies.write(tmp_path, seeds=1)
    for name in ('config', 'env', 'data'):
        (networks / f'{name}.json').unlink()
    make_report(tmp_path, networks)
    titles = re.findall(r'^## \d+\. (.*)$', text(tmp_path), re.MULTILINE)
    missing = {title for title in titles
               if re.search(r'^Missing: .*`python -m .*`', section(tmp_path, title), re.MULTILINE)}  # fmt: skip
    assert missing == {
        "The paper's tables beside ours", 'Leaderboard', 'Training', 'Comparisons and ablations', 'Audits',
        'The sweep at a glance',
    }  # fmt: skip
    assert 'env.json' in section(tmp_path, 'How to rerun every number')


def test_what_cannot_be_reported_is_said_in_one_line(tmp_path, refusal):
    def refused(*arguments):
        return refusal(report.main, [*map(str, arguments), '--no_images'])

    networks, _ = studies.write(tmp_path / 'a')
    others, _ = studies.write(tmp_path / 'b', dataset='PHANTOM')
    empty = tmp_path / 'empty'
    empty.mkdir()
    out = f'--out={tmp_path}/report.html'
    assert 'no such directory' in refused(tmp_path / 'nix', out)
    assert 'no .sqlite file' in refused(empty, out)
    assert '2 data sets' in refused(networks, others, out)
    assert 'no folder' in refused(networks, f'--out={tmp_path}/nix/report.html')
    assert 'no such folder' in refused(networks, out, f'--figures={tmp_path}/nix')
    assert 'ends in .html' in refused(networks, f'--out={tmp_path}/report')
    assert 'no such recipe' in refused(networks, out, '--reference=nix')
    with contextlib.closing(Results(empty / 'results.sqlite')) as database:
        database.begin([{'trial_id': 'a', 'dataset': 'head_ct'}])
    assert 'no finished trial among 1' in refused(empty, out)
    assert not list(tmp_path.glob('report*'))


def test_a_label_with_markup_is_text(tmp_path):
    networks, baselines = studies.write(tmp_path)
    with contextlib.closing(sqlite3.connect(networks / 'results.sqlite')) as database, database:
        database.execute("UPDATE trials SET recipe = '<b>$x$ | & \"', digest = NULL")
    make_report(tmp_path, networks, baselines)
    assert '<b>' not in text(tmp_path, 'html') and '&lt;b&gt;$x$ | &amp;' in text(tmp_path, 'html')
    assert not Page(text(tmp_path, 'html')).open


@pytest.mark.slow
def test_a_training_is_reported_with_the_images_that_it_misreads(labelled_folder, tmp_path):
    workdir, environment = tmp_path / 'run', runs.child_environment(tmp_path)
    with runs.fork_server(environment, tmp_path / 'output') as server:
        sweep = ('--config.split.scheme=kfold', '--config.split.folds=2', '--sweep=split.fold=0:2 seed=0:2')
        status, output = server.run(runs.flags(labelled_folder, workdir, *sweep))
    assert status == 0, output
    report.main([str(workdir), f'--out={tmp_path}/report.html'])
    predictions = pd.read_csv(workdir / 'predictions.csv')
    mean = predictions.groupby('image_id')[['label', 'probability']].mean()
    wrong = mean[(mean.probability >= 0.5) != (mean.label == 1)]
    assert Page(text(tmp_path, 'html')).pictures == np.minimum(wrong.label.value_counts(), misread.MOST).sum()
    assert '--sweep=' in section(tmp_path, 'How to rerun every number')
    assert set(numbers(tmp_path, 'leaderboard').n) == {40, 20}


def test_a_long_table_is_folded_and_says_how_many_rows_it_has(real):
    folded = re.findall(r'<details><summary>(.*?): (\d+) rows</summary>(.*?)</details>', text(real, 'html'), re.DOTALL)
    assert {caption for caption, *_ in folded} >= {'CLAIM, 2024 update', 'TRIPOD+AI, 2024', 'Model card'}
    for caption, count, inside in folded:
        assert int(count) == len(re.findall(r'<th scope="row">', inside))
        assert int(count) > page.LONG or caption == 'The same differences in numbers'  # as in the figure above it
    assert '<details' not in re.search(r'<h2>3. Leaderboard.*?id="leaderboard"', text(real, 'html'), re.DOTALL)[0]


def test_a_remark_stands_below_its_row(real):
    row = r'<tr class="remarked"><th scope="row">Paper, table 2, 12 epochs.*?</tr>\s*<tr class="remark">'
    below = re.search(row + '<td colspan="6">(.*?)</td>', text(real, 'html'), re.DOTALL)[1]
    assert below == 'The printed counts give a precision and an F1 of 100.'
    table = section(real, "The paper's tables beside ours")
    assert re.search(r'12 epochs: cnn, .*\| The printed counts give a precision and an F1 of 100\. \|', table)


def test_points_stand_below_each_other():
    shown = [page.Number(1, printed=text) for text in ('90.90', '100', '80.0')]
    column = page.Column('accuracy', shown)
    full = [column.text(each) + column.padding(each) for each in shown]
    assert full == ['90.90', '100\N{PUNCTUATION SPACE}\N{FIGURE SPACE}\N{FIGURE SPACE}', '80.0\N{FIGURE SPACE}']


def test_other_data_have_their_own_class_names_and_no_word_of_the_paper(tmp_path):
    studies.report(tmp_path, dataset='moles', classes=('benign', 'malignant'))
    for suffix in ('html', 'md', 'csv'):
        said = re.sub(r'<svg [^>]*>|<style>.*?</style>', '', text(tmp_path, suffix), flags=re.DOTALL)
        assert not re.findall(r'.*(?:hemorrhage|paper|head.CT).*', said, re.IGNORECASE)
    assert text(tmp_path).startswith('# Malignant or benign: what the recipes reach on moles')
    assert 'Malignant called benign by' in section(tmp_path, 'Misread images')
    assert 'predicted probability of malignant' in text(tmp_path, 'html')


SCRIPT = """({
    'scroll': document.documentElement.scrollWidth, 'width': window.innerWidth,
    'figures': [...document.querySelectorAll('figure')].filter(each => each.querySelector('svg, img')
        .getBoundingClientRect().height > 80 && each.getBoundingClientRect().width > 200).map(each => each.id),
    'paper': getComputedStyle(document.body).backgroundColor,
    'auc': [...document.querySelectorAll('#leaderboard th')].filter(each => each.textContent.startsWith('AUC'))
        .map(each => each.getBoundingClientRect().right)[0],
    'shown': [...document.querySelectorAll('table')].filter(each => each.checkVisibility({contentVisibilityAuto: true})
        && each.getBoundingClientRect().height > 20).map(each => each.id),
    'wide': [...document.querySelectorAll('table')].filter(each => each.getBoundingClientRect().width
        > document.body.clientWidth).map(each => each.id),
    'folded': [...document.querySelectorAll('details table')].map(each => each.id),
})"""
NEEDS_BROWSER = pytest.mark.skipif(
    not (browser.PROGRAM or 'CI' in os.environ), reason='no Chromium here: apt-get install chromium'
)
PRINTED = 695  # pixels between the margins of A4


@pytest.mark.slow
@NEEDS_BROWSER
def test_a_browser_shows_every_figure_without_scrolling_sideways(real, phantom, tmp_path):
    papers = set()
    with browser.start(tmp_path) as window:
        for folder in (real, phantom):
            for width, scheme in ((400, 'light'), (400, 'dark'), (1200, 'light')):
                seen = window.show(folder / 'report.html', width, SCRIPT, scheme)
                assert seen.errors == []
                assert [url for url in seen.requests if not url.startswith('data:')] == [
                    (folder / 'report.html').as_uri()]  # fmt: skip
                assert set(seen.answer['figures']) == FIGURES
                assert seen.answer['scroll'] <= seen.answer['width'] == width
                papers.add(seen.answer['paper'])
                if width > 1000:
                    assert seen.answer['auc'] <= width and seen.answer['wide'] == []
                assert not set(seen.answer['folded']) & set(seen.answer['shown'])
    assert len(papers) == 2  # light and dark


@pytest.mark.slow
@NEEDS_BROWSER
def test_paper_shows_all_tables_and_all_of_their_columns(real, tmp_path):
    with browser.start(tmp_path) as window:
        seen = window.show(real / 'report.html', PRINTED, SCRIPT, medium='print').answer
    assert len(seen['folded']) > 3 and set(seen['folded']) <= set(seen['shown'])
    assert seen['auc'] <= PRINTED and seen['wide'] == []


def test_names_are_no_markup_in_the_markdown_and_no_formula_in_the_csv(tmp_path):
    name, formula = '<script>alert(1)</script>', '=cmd()'
    studies.report(tmp_path, dataset=f'{name}`', classes=(formula, '<img src=x>'))
    assert '<script' not in text(tmp_path) and '<img' not in text(tmp_path)
    assert '&lt;script>alert(1)' in text(tmp_path)
    csv = (tmp_path / 'report.csv').read_text()
    assert not [line for line in csv.splitlines() if re.search(r'(^|,)"?[=@]', line)]


def commands(folder):
    """Every command that the report gives, as a shell takes it."""
    found = re.findall(r'`(?:\S+=\S+ )?(python -m [^`]*)`', text(folder))
    found += [line for line in text(folder).splitlines() if line.startswith('python -m ')]
    return [shlex.split(each) for each in found]


def test_commands_of_the_report_work_as_printed_on_own_images_in_any_folder(tmp_path):
    directories = studies.write(tmp_path / 'my runs', dataset='moles')[:1]  # no baselines
    written = json.loads((directories[0] / 'config.json').read_text())
    written['config']['dataset'] |= {'name': 'folder', 'dir': "/data/anna's moles", 'positive': 'bad mole'}
    (directories[0] / 'config.json').write_text(json.dumps(written))
    start = {'command': "python -m bhcnet_jax.main --config=imbalanced --workdir=runs/elsewhere --sweep='seed=0:2'"}
    start['python'] = '3.11'
    (directories[0] / 'env.json').write_text(json.dumps([start]))
    make_report(tmp_path, *directories)
    found = commands(tmp_path)
    assert {each[2] for each in found} == {f'bhcnet_jax.{name}' for name in ('main', 'baselines', 'audit', 'report')}
    for _, _, module, *arguments in found:
        if module == 'bhcnet_jax.report':
            assert arguments in ([str(directories[0])], [str(directories[0]), '--no_images'])
        elif any(each.startswith('--workdir') for each in arguments):
            assert arguments == ['--config=imbalanced', '--sweep=seed=0:2', f'--workdir={directories[0]}']
        else:
            prefix = '--' if module == 'bhcnet_jax.audit' else '--config.dataset.'
            assert {f"{prefix}dir=/data/anna's moles", f'{prefix}positive=bad mole'} <= set(arguments)


def test_the_command_of_the_report_has_the_flags_that_it_was_given(real):
    again = [each for each in commands(real) if each[2] == 'bhcnet_jax.report'][-1]
    assert again[3:] == [str(real / 'networks'), str(real / 'baselines'), '--no_images']


def test_trials_that_were_asked_for_and_are_not_done_are_counted(real, tmp_path):
    assert numbers(real, 'runs').value[str(real / 'networks'), 'asked for'] == 2 * studies.FOLDS * 4
    assert 'Not all trials' not in section(real, 'How to rerun every number')
    directories = studies.write(tmp_path)
    starts = json.loads((directories[0] / 'env.json').read_text())
    more = studies.SWEEP.replace('seed=0:2', 'seed=0:3')
    starts.append({**starts[0], 'command': f"python -m bhcnet_jax.main --config=imbalanced --sweep=' {more}'"})
    (directories[0] / 'env.json').write_text(json.dumps(starts))
    make_report(tmp_path, *directories)
    told = section(tmp_path, 'How to rerun every number')
    assert f'{directories[0]} has 32 of 48 trials' in told
    assert f"'--sweep={more}'" in told
