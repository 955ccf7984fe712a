"""docs/use.md and docs/use.py run as they are written."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image

PAGE = pathlib.Path(__file__).parents[2] / 'docs/use.md'


@pytest.mark.slow
def test_the_page_runs_as_written(crossed, heads, tmp_path):
    training, *blocks = re.findall(r'(?:^    .+\n)+', PAGE.read_text(), re.MULTILINE)
    assert 'python -m bhcnet_jax.main --config=smoke --workdir=runs/smoke' in training
    shutil.copytree(crossed, tmp_path / 'runs/smoke')  # in its place
    shutil.copytree(heads, tmp_path / 'images')
    shutil.copytree(heads, tmp_path / 'labelled')
    for path in (tmp_path / 'labelled').glob('*.png'):
        Image.open(path).rotate(5).save(path)  # others than those of the training
    printed, commands = [], []
    for block in blocks:
        if 'import' in block:
            code = re.sub('^    ', '', block, flags=re.MULTILINE).replace('32, 32', '16, 16')  # its size
            printed.append(run(['-c', code], tmp_path))
            continue
        for _, *words in (line.split() for line in block.splitlines()):
            commands.append(words[1])
            run(words, tmp_path)
    use, onnx, stablehlo = printed
    assert use.count('array') == 2 and '(24, 16, 16)' in use
    assert re.fullmatch(r'\[.+ .+\]\n', onnx) and re.fullmatch(r'\[.+ .+\]\n', stablehlo)
    names = ['predict', 'explain', 'difficulty', 'bundle', 'predict', 'evaluate', 'export', 'export']
    assert commands == [f'bhcnet_jax.{name}' for name in names]
    assert len(pd.read_csv(tmp_path / 'predictions/predictions.csv')) == 24
    assert len(pd.read_csv(tmp_path / 'runs/smoke/on-labelled/images.csv')) == 24


@pytest.mark.slow
def test_the_notebook_trains_predicts_and_explains(tmp_path):
    said = run([PAGE.with_suffix('.py')], tmp_path, TFDS_DATA_DIR=str(tmp_path), MPLBACKEND='agg', XLA_FLAGS='')
    right = int(re.search(r'(\d+)% of 40 drawn heads are told right', said)[1])
    assert right >= 70  # by chance alone fewer are in 99 of 100 cases
    with Image.open(tmp_path / 'runs/use/explained.png') as figure:
        assert figure.size == (800, 600)


def run(words, folder, **variables):
    """Its standard output."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert not done.returncode, done.stderr
    return done.stdout
