import contextlib
import dataclasses
import html.parser
import json
import os
import re
import sqlite3
import xml.etree.ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

import browser
import runs
import studies
from bhcnet_jax.records.database import Results
from bhcnet_jax.report import __main__ as report
from bhcnet_jax.report import evidence, page, settings
from bhcnet_jax.report.sections import answer, misread, paper_tables

FIGURES = {
    'roc', 'precision-recall', 'reliability', 'probabilities', 'decision', 'loss', 'accuracy', 'by-fold', 'by-seed',
    'ablations', 'parallel', 'accuracies',
}  # fmt: skip
SECTIONS = 11


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    return written(tmp_path_factory.mktemp('real'))


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
    return written(tmp_path_factory.mktemp('phantom'), dataset='PHANTOM', skill=1.0)


def written(folder, *flags, **study):
    """A study, and the report on it in folder/report.*."""
    directories = studies.write(folder, **study)
    make(*directories, f'--out={folder}/report.html', *flags)
    return folder


def make(*arguments):
    report.main([*map(str, arguments), '--no_images'])


def numbers(folder, table):
    """The rows of one table in report.csv: row, column -> value, low, high, n."""
    found = pd.read_csv(folder / 'report.csv')
    return found[found.table == table].set_index(['row', 'column'])[['value', 'low', 'high', 'n']]


def text(folder, suffix='md'):
    return (folder / f'report.{suffix}').read_text()


def section(folder, number):
    return re.split(r'\n## \d+\. ', text(folder))[number]


SCORES = {  # column -> scikit-learn's metric of labels, probabilities and weights, and the class that it is of
    'accuracy': (lambda y, p, w: reference.accuracy_score(y, p >= 0.5, sample_weight=w), None),
    'sensitivity': (lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w), 1),
    'specificity': (lambda y, p, w: reference.recall_score(y, p >= 0.5, sample_weight=w, pos_label=0), 0),
    'AUC': (lambda y, p, w: reference.roc_auc_score(y, p, sample_weight=w), None),
    'precision': (lambda y, p, w: reference.precision_score(y, p >= 0.5, sample_weight=w), None),
    'F1': (lambda y, p, w: reference.f1_score(y, p >= 0.5, sample_weight=w), None),
    'log-loss (nats)': (lambda y, p, w: reference.log_loss(y, p, sample_weight=w), None),
    'Brier score': (lambda y, p, w: reference.brier_score_loss(y, p, sample_weight=w), None),
}
DRAWS = 8


def test_every_number_of_the_leaderboard_is_that_of_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, 'DRAWS', DRAWS)
    directories = studies.write(tmp_path)
    found = report.make(evidence.gather(directories), with_images=False)
    report.write(found, tmp_path / 'report.html')
    board = pd.concat([numbers(tmp_path, 'leaderboard'), numbers(tmp_path, 'scores')])
    scored = studies.predictions(directories)
    seen = set()
    for name, rows in board.groupby('row'):
        expected = recompute(scored[scored.recipe_id == recipe_id_of(name, scored)])
        for (_, column), row in rows.iterrows():
            of = column.removesuffix(', sd over seeds')
            values, low, high, n = expected[of]
            if of != column:
                assert (row.value, row.n) == pytest.approx((np.std(values, ddof=1), len(values)))
            else:
                assert tuple(row) == pytest.approx((np.mean(values), low, high, n)), (name, column)
            seen.add((name, column))
    assert len(seen) == 6 * (len(SCORES) + 4)  # a row per recipe; four metrics have a spread


def recipe_id_of(label, scored):
    """Networks are told apart by their settings, baselines by their name."""
    names = set(scored.recipe_id)
    if label in names:
        return label
    told = re.search(r'dropout ([\d.]+), peak_lr ([\d.]+)', label).groups()
    dropout, peak_lr = map(float, told)
    point = {'model.dropout': dropout, 'optimizer.peak_lr': peak_lr}
    found = studies.trial.identify(
        studies.trial.set_point(studies.config().to_dict(), point), studies.NO_SPLIT, ''
    ).recipe_id
    assert found in names
    return found


def recompute(scored):
    """column -> its values by seed, ends of its interval over groups of look-alikes, images that it is of."""
    seeds = [rows.sort_values('image_id') for _, rows in scored.groupby('seed')]
    truth = seeds[0].label.to_numpy()
    groups = len(truth) // 2
    drawn = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).repeat(2, axis=1)
    found = {}
    for name, (score, of) in SCORES.items():
        probabilities = [rows.probability.to_numpy() for rows in seeds]
        values = [score(truth, each, None) for each in probabilities]
        draws = [np.mean([score(truth, each, weights) for each in probabilities]) for weights in drawn]
        n = len(truth) if of is None else np.sum(truth == of)
        if name == 'precision':
            n = round(np.mean([np.sum(each >= 0.5) for each in probabilities]))
        found[name] = (values, *np.percentile(draws, (2.5, 97.5)), n)
    return found


def test_html_markdown_and_csv_say_the_same(real):
    board, in_html, in_markdown = numbers(real, 'leaderboard'), text(real, 'html'), section(real, 3)
    for row in board.itertuples():
        style = 'plain' if 'AUC' in row.Index[1] else 'percent'
        noun = 'seed' if 'sd' in row.Index[1] else ''
        shown = page.Number(row.value, row.low, row.high, int(row.n), style, noun=noun)
        assert str(shown) in in_markdown
        assert f'<span>{shown.text}<small>{shown.detail}</small>' in in_html


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


def test_everything_made_from_the_phantom_says_so(phantom):
    found = Page(text(phantom, 'html'))
    assert len(found.texts) > 25
    for tag, parts in found.texts:
        assert 'PHANTOM' in ''.join(parts), (tag, parts)
    for svg in re.findall(r'<svg .*?</svg>', text(phantom, 'html'), re.DOTALL):
        assert 'PHANTOM' in re.sub(r'<svg [^>]*>', '', svg)  # drawn, not only said aloud
    tables = re.findall(r'\n\n([^\n]*)\n\n\|', text(phantom))
    assert len(tables) > 10 and all('PHANTOM' in title for title in tables)
    assert set(pd.read_csv(phantom / 'report.csv').mark) == {'PHANTOM: synthetic images'}


def test_each_figure_may_be_a_file_of_its_own(tmp_path):
    directories = studies.write(tmp_path, dataset='PHANTOM')
    make(*directories, f'--out={tmp_path}/report.html', f'--figures={tmp_path}')
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


def test_a_network_that_does_not_beat_the_shortcuts_has_learnt_nothing(real, phantom):
    assert 'it beats them' in section(real, 1)
    assert 'it has learnt nothing that the shortcuts do not tell' in ' '.join(section(phantom, 1).split())


def test_the_answer_tells_what_the_best_recipe_of_the_paper_reaches(tmp_path):
    directories = studies.write(tmp_path)
    found = evidence.gather(directories)
    best = found.best('network')
    text = ' '.join(answer.answer(found).blocks)
    assert f'the best of its recipes here, {best.label}, has {best.number("accuracy")}: of 8 trainings' in text
    other = [dataclasses.replace(each, settings={'model.convs': 2}) for each in found.recipes]
    text = ' '.join(answer.answer(dataclasses.replace(found, recipes=other)).blocks)
    assert f'none of its recipes was trained here, so what follows is of {best.label}: of 8 trainings' in text


def test_recipes_of_one_label_are_told_apart_by_what_both_have(tmp_path):
    networks, _ = studies.write(tmp_path)
    known = evidence.gather([networks]).recipes[0].settings
    without = {key: value for key, value in known.items() if not key.startswith('imbalanced.')}
    one, two = known, without | {'phases': ['balanced'], 'model.filters': (8, 16)}
    assert settings.varying([one, two]) == ['phases', 'model.filters']
    assert [settings.shown(two[key]) for key in ('phases', 'model.filters')] == ['balanced', '(8, 16)']
    assert settings.shown(one['phases']) == 'balanced + imbalanced'
    assert set(settings.varying([known, without])) == {key for key in known if key.startswith('imbalanced.')}


def test_a_label_tells_what_is_not_as_in_most_of_the_recipes(tmp_path):
    networks, _ = studies.write(tmp_path)
    first = evidence.gather([networks]).recipes[0].settings
    changes = ({}, {'model.norm': 'group'}, {'phases': ['balanced']}, {'model.dtype': 'bfloat16', 'model.dropout': 0.1})
    known = [{**first, 'model.dropout': 0.5, **change} for change in changes]
    keys = settings.varying(known)
    told = [settings.told(each, keys, settings.usual(known, keys)) for each in known]
    assert told[:3] == ['', 'norm group', 'balanced']
    assert set(told[3].split(', ')) == {'bfloat16', 'dropout 0.1'}
    half = known[:2]  # of two there is no majority
    keys = settings.varying(half)
    assert [settings.told(each, keys, settings.usual(half, keys)) for each in half] == ['norm none', 'norm group']


def test_without_baselines_their_command_is_named(tmp_path):
    networks, _ = studies.write(tmp_path)
    make(networks, f'--out={tmp_path}/report.html')
    command = (
        "python -m bhcnet_jax.baselines --config=balanced --config.split.scheme=kfold --config.split.folds=4 "
        "--sweep='seed=0:2 split.fold=0:4'"
    )
    assert command in section(tmp_path, 1) and command in section(tmp_path, 3)


def test_images_that_are_left_out_are_said_to_be(real):
    assert '--no_images' in section(real, 8)
    assert Page(text(real, 'html')).pictures == 0


def test_every_misread_image_is_named(real):
    best = numbers(real, 'leaderboard').value.xs('accuracy', level='column').drop(
        ['random forest on all shortcuts', 'random forest on 64 x 64 pixels']).idxmax()  # fmt: skip
    scored = studies.predictions([real / 'networks'])
    mine = scored[scored.recipe_id == recipe_id_of(best, scored)].groupby('image_id')[['label', 'probability']].mean()
    wrong = mine[(mine.probability >= 0.5) != (mine.label == 1)]
    assert len(wrong) > 3
    assert set(re.findall(r'\d{3}\.png', section(real, 8))) == set(wrong.index)


def test_differences_and_disagreements_are_those_of_the_predictions(real):
    reference_label = re.search(r'minus the reference, (.*\))\*\*', section(real, 6))[1]
    scored = studies.predictions([real / 'networks', real / 'baselines'])
    right = {}
    for label in numbers(real, 'leaderboard').index.unique('row'):
        mine = scored[scored.recipe_id == recipe_id_of(label, scored)]
        mean = mine.groupby('image_id')[['label', 'probability']].mean()
        of_trials = np.mean((mine.probability >= 0.5) == (mine.label == 1))
        right[label] = (of_trials, (mean.probability >= 0.5) == (mean.label == 1))
    first, first_right = right.pop(reference_label)
    found = numbers(real, 'comparisons')
    for label, (accuracy, is_right) in right.items():
        assert found.value[label, 'accuracy difference'] == pytest.approx(accuracy - first)
        row = next(line for line in section(real, 6).splitlines() if line.startswith(f'| {label} |'))
        only = [str((is_right & ~first_right).sum()), str((~is_right & first_right).sum())]
        assert [cell.strip() for cell in row.split('|')][5:7] == only
    adjusted = found.value.xs('after Holm, 5 tests', level='column')
    assert (adjusted >= found.value.xs('McNemar mid-p', level='column')).all()


def test_ablations_differ_from_the_reference_in_one_setting(real):
    names = set(numbers(real, 'ablation-differences').index.get_level_values('row'))
    assert len(names) == 2  # of three other networks one differs in both
    assert {name.partition(':')[0] for name in names} == {'model.dropout', 'optimizer.peak_lr'}


def test_validation_scores_are_those_of_the_database_with_losses_paired_by_seed_and_fold(real):
    reference_label = re.search(r'minus the reference, (.*\))\*\*', section(real, 6))[1]
    studies.predictions([real / 'networks'])  # exports results.csv
    results = pd.read_csv(real / 'networks/results.csv')
    found = numbers(real, 'validation')
    labels = list(dict.fromkeys(found.index.get_level_values('row')))
    trials = {label: results[results.recipe_id == recipe_id_of(label, results)].set_index(['seed', 'fold'])
              for label in labels}  # fmt: skip
    assert len(labels) == 4  # without the baselines
    assert labels == sorted(labels, key=lambda label: trials[label].val_loss.mean())
    for label, mine in trials.items():
        n = studies.VAL_IMAGES * len(mine)
        assert found.value[label, 'accuracy'] == pytest.approx(mine.val_accuracy.mean())
        assert (found.n[label, 'accuracy'], found.n[label, 'log-loss (nats)']) == (n, n)
        assert found.value[label, 'log-loss (nats)'] == pytest.approx(mine.val_loss.mean())
        change = mine.val_loss - trials[reference_label].val_loss
        assert found.value[label, 'log-loss minus the reference'] == pytest.approx(change.mean())
        lower = '-' if label == reference_label else f'{(change < 0).sum()} of {len(change)}'
        row = next(line for line in section(real, 6).splitlines() if line.startswith(f'| {label} |') and lower in line)
        assert row.split('|')[-2].strip() == lower


def test_an_ensemble_answers_with_the_mean_probability_over_seeds(real):
    scored = studies.predictions([real / 'networks', real / 'baselines'])
    found = numbers(real, 'ensembles').value
    assert len(found) == 6 * 4
    for label in found.index.unique('row'):
        mine = scored[scored.recipe_id == recipe_id_of(label, scored)]
        mean = mine.groupby('image_id')[['label', 'probability']].mean()
        for column in ('accuracy', 'sensitivity', 'specificity', 'AUC'):
            expected = SCORES[column][0](mean.label == 1, mean.probability, None)
            assert found[label, column] == pytest.approx(expected)


def test_the_reference_may_be_named(tmp_path):
    directories = studies.write(tmp_path)
    make(*directories, f'--out={tmp_path}/report.html', '--reference', 'random forest on all shortcuts')
    assert 'minus the reference, random forest on all shortcuts' in section(tmp_path, 6)


def test_a_paper_row_stands_beside_the_recipe_with_its_model_phases_and_epochs(real):
    rows = [line for line in section(real, 2).splitlines() if line.startswith(('| Paper', '| This study'))]
    place = next(place for place, row in enumerate(rows) if row.startswith('| This study'))
    assert rows[place - 1].startswith('| Paper, table 2, 12 epochs: cnn, balanced then imbalanced | 100 % (83.9')


def test_a_holdout_that_is_drawn_again_is_told_by_its_spread_and_not_as_so_many_recipes(tmp_path):
    directories = studies.write(tmp_path)
    again = studies.write_holdouts(tmp_path, {4: [16, 12, 15], 24: [19, 20, 11]})
    make(*directories, again, f'--out={tmp_path}/report.html')
    rows = numbers(tmp_path, 'holdouts').value
    of_4, of_24 = (rows[f'balanced (epochs {epochs})'] for epochs in (4, 24))
    for of, right, printed in ((of_4, [16, 12, 15], 0.8), (of_24, [19, 20, 11], 0.95)):
        accuracies = np.array(right) / 20
        names = ('lowest', 'lower quartile', 'median', 'upper quartile', 'highest')
        np.testing.assert_allclose(of[list(names)], np.quantile(accuracies, (0, 0.25, 0.5, 0.75, 1)))
        assert of['mean'] == pytest.approx(accuracies.mean())
        assert of["the paper's"] == printed
        assert of["reached the paper's"] == pytest.approx(np.mean(accuracies >= printed))
    assert not [row for row, _ in numbers(tmp_path, 'leaderboard').index if row.startswith('balanced')]
    assert 'id="holdouts"' in text(tmp_path, 'html')


def test_holdouts_alone_are_recipes(tmp_path):
    again = studies.write_holdouts(tmp_path, {4: [16, 12]})
    make(again, f'--out={tmp_path}/report.html')
    assert len({row for row, _ in numbers(tmp_path, 'leaderboard').index}) == 2


@pytest.mark.parametrize(('key', 'value'), [('model.convs', 2), ('model.norm', 'group')])
def test_another_network_than_the_papers_stands_beside_no_row_of_the_paper(tmp_path, key, value):
    found = evidence.gather(studies.write(tmp_path)[:1]).recipes[0]
    beside = [paper_tables._row_of(found.trials, each) for each in (found.settings, {key: value})]
    assert beside[0] and beside[1] is None


def test_look_alikes_in_one_test_part_are_counted(real, tmp_path):
    assert numbers(real, 'leakage').value['groups with images in two test parts, over all recipes', 'found'] == 0
    directories = studies.write(tmp_path)
    for directory in directories:
        data = json.loads((directory / 'data.json').read_text())
        data['groups'].append(['000.png', '004.png'])  # folds 0 and 1
        (directory / 'data.json').write_text(json.dumps(data))
    found = [evidence.crossing(each) for each in evidence.gather(directories).recipes]
    assert found == [1] * 6


def test_a_section_without_data_names_the_command_that_makes_them(tmp_path):
    networks, _ = studies.write(tmp_path, seeds=1)
    for name in ('config', 'env', 'data'):
        (networks / f'{name}.json').unlink()
    make(networks, f'--out={tmp_path}/report.html')
    missing = {number: re.findall(r'^Missing: .*`python -m .*`', section(tmp_path, number), re.MULTILINE)
               for number in range(1, SECTIONS + 1)}  # fmt: skip
    assert {number for number, lines in missing.items() if lines} == {2, 3, 5, 6, 7, 9}
    assert 'env.json' in section(tmp_path, 10)


def refusal(*arguments):
    with pytest.raises(SystemExit) as caught:
        make(*arguments)
    message = str(caught.value)
    assert message.startswith('error: ') and '\n' not in message
    return message


def test_what_cannot_be_reported_is_said_in_one_line(tmp_path):
    networks, _ = studies.write(tmp_path / 'a')
    others, _ = studies.write(tmp_path / 'b', dataset='PHANTOM')
    empty = tmp_path / 'empty'
    empty.mkdir()
    out = f'--out={tmp_path}/report.html'
    assert 'no such directory' in refusal(tmp_path / 'nix', out)
    assert 'no .sqlite file' in refusal(empty, out)
    assert '2 data sets' in refusal(networks, others, out)
    assert 'no folder' in refusal(networks, f'--out={tmp_path}/nix/report.html')
    assert 'no such folder' in refusal(networks, out, f'--figures={tmp_path}/nix')
    assert 'ends in .html' in refusal(networks, f'--out={tmp_path}/report')
    assert 'no such recipe' in refusal(networks, out, '--reference=nix')
    with contextlib.closing(Results(empty / 'results.sqlite')) as database:
        database.begin([{'trial_id': 'a', 'dataset': 'head_ct'}])
    assert 'no finished trial among 1' in refusal(empty, out)
    assert not list(tmp_path.glob('report*'))


def test_a_label_with_markup_is_text(tmp_path):
    networks, baselines = studies.write(tmp_path)
    with contextlib.closing(sqlite3.connect(networks / 'results.sqlite')) as database, database:
        database.execute("UPDATE trials SET recipe = '<b>$x$ | & \"'")
    make(networks, baselines, f'--out={tmp_path}/report.html')
    assert '<b>' not in text(tmp_path, 'html') and '&lt;b&gt;$x$ | &amp;' in text(tmp_path, 'html')
    assert not Page(text(tmp_path, 'html')).open


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
    assert '--sweep=' in section(tmp_path, 10)
    assert set(numbers(tmp_path, 'leaderboard').n) == {40, 20, 2}


SCRIPT = """({
    'scroll': document.documentElement.scrollWidth, 'width': window.innerWidth,
    'figures': [...document.querySelectorAll('figure')].filter(each => each.querySelector('svg, img')
        .getBoundingClientRect().height > 80 && each.getBoundingClientRect().width > 200).map(each => each.id),
    'paper': getComputedStyle(document.body).backgroundColor,
})"""


@pytest.mark.slow
@pytest.mark.skipif(not (browser.PROGRAM or 'CI' in os.environ), reason='no Chromium here: apt-get install chromium')
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
    assert len(papers) == 2  # light and dark
