"""predictions.html: sorted, bounded, self-contained, and safe whatever the files are called."""

import base64
import html
import io
import os
import re
import shutil
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import bhcnet_jax
import browser
from bhcnet_jax import predict
from bhcnet_jax.inference import gallery
from bhcnet_jax.inference.gallery import Gallery, overlay
from bhcnet_jax.inference.scoring import Prediction

SCRIPT = '<script>alert(1)<,script><img src=x onerror=alert(1)>&"\'.png'


def no_bar(shown, **_):
    return shown


def predicted(file, probability):
    return Prediction(file, probability, None, 'positive', '', 0.1, True, None, None, None, None)


def cards(page):
    """Of each image on a page: its probability, its name and the rest, as text."""
    found = re.findall(r'<li>\n<h2>(\S+) .*?<p class="file">(.*?)</p>\n<dl>(.*?)</dl>', page, re.DOTALL)
    return [(number, html.unescape(name), re.sub('<[^>]+>', ' ', rest).split()) for number, name, rest in found]


def decoded(page, kind):
    uris = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in uris]


def write(model, predictions, images, path):
    made = Gallery(model)
    for each, image in zip(predictions, images, strict=True):
        made.add(each, image)
    made.write(path, no_bar)
    return path.read_text()


@pytest.fixture(scope='module')
def written(crossed, heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp('written')
    shutil.copytree(heads, folder / 'in')
    shutil.copy(heads / '05.png', folder / 'in' / SCRIPT)
    (folder / 'in/labels.csv').unlink()
    with pytest.raises(SystemExit):
        predict.main([str(crossed), str(folder / 'in'), f'--out={folder}'])
    return folder


@pytest.fixture(scope='module')
def page(written):
    return (written / 'predictions.html').read_text()


def test_all_images_are_shown_by_falling_probability(written, page):
    table = pd.read_csv(written / 'predictions.csv').sort_values('probability', ascending=False, kind='stable')
    shown = cards(page)
    assert [name for _, name, _ in shown] == table.file.tolist()
    assert [probability for probability, _, _ in shown] == [f'{each:.3f}' for each in table.probability]
    said = [f'decision {row.decision} spread {row.spread:.3f} in training set yes' for row in table.itertuples()]
    assert [' '.join(rest) for *_, rest in shown] == said


def test_images_are_those_that_the_network_saw_beside_their_heat_maps(written, page, crossed):
    model = bhcnet_jax.load(crossed)
    seen = np.stack([model.preprocess(name) for _, name, _ in cards(page)])
    np.testing.assert_array_equal(decoded(page, 'png'), seen)
    expected = [overlay(image, heat) for image, heat in zip(seen, model.explain(seen), strict=True)]
    assert np.abs(np.int32(decoded(page, 'jpeg')) - expected).mean() < 12  # as JPEG changes them


def test_an_overlay_leaves_grey_what_has_no_evidence_and_is_yellow_where_it_is_largest():
    image, heat = np.full((2, 2), 100, np.uint8), np.array([[0, 0], [0.5, 1]])
    made = overlay(image, heat)
    assert (made[0] == 100).all()
    red, green, blue = made[1, 1].astype(int)
    assert min(red, green) > 200 and blue < 80
    assert len({*made[1, 0]}) == 3


def test_names_of_files_are_no_part_of_the_page(page):
    assert '<script' not in page and 'onerror=alert(1)>' not in page
    assert any(name.endswith(SCRIPT) for _, name, _ in cards(page))


def test_a_name_that_is_no_unicode_is_shown(crossed, tmp_path):
    made = Gallery(bhcnet_jax.load(crossed))
    made.add(predicted(os.fsdecode(b'e\xff.png'), 0.5), np.zeros((16, 16), np.uint8))
    made.write(tmp_path / 'page.html', no_bar)
    assert r'e\udcff.png' in (tmp_path / 'page.html').read_text()


def test_the_page_loads_nothing(page):
    assert not re.search(r'(?:src|href)="(?!data:)', page) and 'url(' not in page and '@import' not in page


def test_columns_that_are_new_to_a_prediction_are_shown_and_unknown_ones_left_out(crossed, tmp_path):
    class Longer(NamedTuple):
        file: str
        calibrated: float
        probability: float
        abstained_because: str
        slices: int
        known: bool | None
        spread: float

    found = [Longer('a', 0.25, 0.75, '<too far>', 3, None, float('nan'))]
    page = write(bhcnet_jax.load(crossed), found, np.zeros((1, 16, 16), np.uint8), tmp_path / 'page.html')
    (probability, name, rest), = cards(page)
    assert (probability, name) == ('0.750', 'a')
    assert ' '.join(rest) == 'calibrated 0.250 abstained because &lt;too far&gt; slices 3'


def test_of_many_images_the_ends_are_shown_and_the_rest_is_counted(crossed, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, 'END', 5)
    model, places = bhcnet_jax.load(crossed), np.random.default_rng(0).permutation(1000)
    made = Gallery(model)
    for place in places:
        made.add(predicted(str(place), place / 1000), np.full((16, 16), place % 256, np.uint8))
        assert len(made._kept) <= 20
    made.write(tmp_path / 'page.html', no_bar)
    page = (tmp_path / 'page.html').read_text()
    assert [int(name) for _, name, _ in cards(page)] == [999, 998, 997, 996, 995, 4, 3, 2, 1, 0]
    assert 'Of 1000 images the 5 most probable and the 5 least probable are shown; 990 between them' in page
    assert page.index('>995<') < page.index('990 images are left out here') < page.index('>4<')
    values = [each.flat[0] for each in decoded(page, 'png')]
    assert values == [place % 256 for place in (999, 998, 997, 996, 995, 4, 3, 2, 1, 0)]


def test_a_page_of_all_images_says_nothing_of_others(page):
    assert 'left out' not in page and '25 images, 4 networks, trained on heads' in page


def test_what_synthetic_images_trained_says_so_and_the_rest_does_not(page, crossed, tmp_path):
    model = bhcnet_jax.load(crossed)
    object.__setattr__(model, 'dataset', 'PHANTOM')
    made = write(model, [predicted('a', 0.5)], np.zeros((1, 16, 16), np.uint8), tmp_path / 'page.html')
    assert '<title>PHANTOM: synthetic images. ' in made and made.count('class="mark"') == 2
    assert 'PHANTOM' not in page


@pytest.mark.skipif(
    not (browser.PROGRAM or 'CI' in os.environ), reason='no Chromium here: apt-get install chromium'
)
@pytest.mark.slow
def test_a_browser_shows_a_thousand_images_without_scrolling_sideways(crossed, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1000, 16, 16), np.uint8)
    found = [predicted(f'{SCRIPT}{"long" * 30}{place}', place / 1000) for place in range(1000)]
    write(bhcnet_jax.load(crossed), found, images, tmp_path / 'page.html')
    script = '''[document.documentElement.scrollWidth <= innerWidth, document.scripts.length,
        [...document.images].filter(each => each.complete && each.naturalWidth == 16).length,
        document.querySelectorAll('li').length]'''
    with browser.start(tmp_path / 'profile') as window:
        for width in (1200, 400):
            seen = window.show(tmp_path / 'page.html', width, script)
            assert not seen.errors and seen.answer == [True, 0, 2000, 1000]
            assert [each for each in seen.requests if not each.startswith('data:')] == [
                (tmp_path / 'page.html').resolve().as_uri()
            ]
