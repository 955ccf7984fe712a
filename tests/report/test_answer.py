"""The answer says what the evidence says."""

import dataclasses
import re

import pytest

import studies
from bhcnet_jax.report import evidence
from bhcnet_jax.report.sections.answer import answer
from studies import section


@pytest.mark.slow
def test_a_network_that_does_not_beat_the_shortcuts_has_learnt_nothing(real, phantom):
    assert 'It beats the best shortcut baseline' in section(real, 'Answer')
    assert 'it has learnt nothing that the shortcuts do not tell' in ' '.join(section(phantom, 'Answer').split())


def words_of(sentence):
    return len(re.sub(r'\(.*?\)', '', sentence).split())  # what stands in brackets is looked up, not read


def sentences(found):
    figure, *texts, note = answer(found).blocks
    assert figure.name == 'accuracies' and note.kind == 'note'
    return texts


def test_the_answer_is_a_figure_and_three_short_sentences(tmp_path):
    texts = sentences(evidence.gather(studies.write(tmp_path)))
    assert len(texts) == 3 and all(text.count('. ') == 0 and words_of(text) <= 30 for text in texts)


def test_the_figure_shows_every_recipe_by_accuracy_and_the_papers_claim(tmp_path):
    found = evidence.gather(studies.write(tmp_path))
    drawn = re.findall(r'<text [^>]*>(.*?)</text>', answer(found).blocks[0].svg)
    values = [text for text in drawn if re.fullmatch(r'\d+\.\d', text)]
    expected = [each.number('accuracy').bare for each in found.recipes]
    assert values == ['100.0', *expected]  # the paper's 20 of 20 first
    assert "the paper's best, one training" in drawn
    assert 'random forest on all' in ' '.join(drawn)


def test_the_answer_tells_what_the_best_recipe_of_the_paper_reaches(tmp_path):
    found = evidence.gather(studies.write(tmp_path))
    best = found.best('network')
    reached = int((best.trials.tp + best.trials.tn == 12).sum())
    last = sentences(found)[-1]
    assert 0 < reached < 8
    assert last.startswith('The paper reports 100.0 % (83.9 to 100.0; n = 20) from one training; of 8 trainings of ')
    assert f'its best recipe here, {best.label}, {reached} reach that on 12 test images.' in last
    other = [dataclasses.replace(each, settings={'model.convs': 2}) for each in found.recipes]
    last = sentences(dataclasses.replace(found, recipes=other))[-1]
    assert f'of 8 trainings of {best.label} (none of its recipes is here), {reached} reach that' in last
