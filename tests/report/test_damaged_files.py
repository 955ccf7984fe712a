"""Whatever config.json, env.json and data.json of a run directory hold: a report, or one line that names the file."""

import json

import pytest

import damages
import studies
from bhcnet_jax import results
from bhcnet_jax.records import recipes
from bhcnet_jax.report import images
from bhcnet_jax.report.evidence import gather
from bhcnet_jax.report.sections.audits import audits
from bhcnet_jax.report.sections.model_card import model_card
from bhcnet_jax.report.sections.reruns import reruns


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The run directory of a sweep."""
    monkeypatch.setattr(recipes, 'DRAWS', 2)  # the files that are damaged have no part in intervals
    return studies.write(tmp_path, dataset='moles', seeds=1, images=16)[0]


def read(directory):
    """All of a report that is from these files."""
    evidence = gather([directory])
    assert len(evidence.classes) == 2
    audits(evidence, images.load(evidence))
    model_card(evidence)
    reruns(evidence)


@pytest.mark.parametrize('name', ['config.json', 'env.json', 'data.json'])
def test_of_a_damaged_file_there_is_a_report_or_a_line_that_names_it(networks, name):
    damages.assert_read_or_named(lambda: read(networks), networks / name)


def test_the_leaderboard_names_a_damaged_data_json_and_does_without_the_others(networks, capsys, refusal):
    for name in ('config.json', 'env.json'):
        whole = (networks / name).read_text()
        for text in damages.of_file(networks / name)[::20]:
            (networks / name).write_text(text)
            results.main([str(networks)])
            assert 'Trials: 16 DONE' in capsys.readouterr().out
        (networks / name).write_text(whole)
    for text in damages.TEXTS:
        (networks / 'data.json').write_text(text)
        line = refusal(results.main, [str(networks)])
        assert 'data.json cannot be read ' in line and ' Restore it from a copy' in line


def test_a_card_of_a_start_that_does_not_say_its_versions(networks):
    (networks / 'env.json').write_text(json.dumps([{'command': 'python -m bhcnet_jax.main --config=balanced'}]))
    table = next(block for block in model_card(gather([networks])).blocks if getattr(block, 'name', '') == 'claim')
    assert any('not recorded in env.json' in row for row in table.rows)
