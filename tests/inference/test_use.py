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
    names = ['predict', 'explain', 'bundle', 'predict', 'evaluate', 'export', 'export']
    assert commands == [f'bhcnet_jax.{name}' for name in names]
    assert len(pd.read_csv(tmp_path / 'predictions/predictions.csv')) == 24
    assert len(pd.read_csv(tmp_path / 'runs/smoke/on-labelled/images.csv')) == 24


def run(words, folder):
    """Its standard output."""
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout
