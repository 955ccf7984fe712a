"""docs/use.md runs as it is written."""

import pathlib
import re
import shutil
import subprocess
import sys

import pandas as pd
from PIL import Image

PAGE = pathlib.Path(__file__).parents[2] / 'docs/use.md'


def test_the_page_runs_as_written(crossed, heads, tmp_path):
    training, python, *commands = re.findall(r'(?:^    .+\n)+', PAGE.read_text(), re.MULTILINE)
    assert 'python -m bhcnet_jax.main --config=smoke --workdir=runs/smoke' in training
    shutil.copytree(crossed, tmp_path / 'runs/smoke')  # in its place
    shutil.copytree(heads, tmp_path / 'images')
    shutil.copytree(heads, tmp_path / 'labelled')
    for path in (tmp_path / 'labelled').glob('*.png'):
        Image.open(path).rotate(5).save(path)  # others than those of the training
    python = re.sub('^    ', '', python, flags=re.MULTILINE)
    said = subprocess.run([sys.executable, '-c', python], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.count('array') == 2 and not said.stderr
    lines = [line.split() for block in commands for line in block.splitlines()]
    commands = ['predict', 'bundle', 'predict', 'evaluate']
    assert [line[2] for line in lines] == [f'bhcnet_jax.{name}' for name in commands]
    for _, *words in lines:
        subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    assert len(pd.read_csv(tmp_path / 'predictions/predictions.csv')) == 24
    assert len(pd.read_csv(tmp_path / 'runs/smoke/on-labelled/images.csv')) == 24
