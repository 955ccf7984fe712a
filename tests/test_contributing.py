"""CONTRIBUTING.md says where things are, and no page links to a file that is not there."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROWS = re.findall(
    r'^\| ([^|]+) \| \[[^]]+\]\(([^)]+)\) \| (`[^|]+`) \|$', (ROOT / 'CONTRIBUTING.md').read_text(), re.MULTILINE
)
PAGES = [*ROOT.glob('*.md'), *(page for folder in ('docs', 'bhcnet_jax') for page in (ROOT / folder).rglob('*.md'))]
LINK = re.compile(r'\]\(([^)#\s]+)(?:#[^)]*)?\)')


def defined(file):
    """Functions and annotated names at the top level of a file, and methods as Class.method."""
    tree = ast.parse(file.read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = [node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {*functions, *names, *(f'{each.name}.{node.name}' for each in classes
                          for node in each.body if isinstance(node, ast.FunctionDef))}  # fmt: skip


def test_six_questions_are_answered():
    assert len(ROWS) == 7  # intervals have two


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_what_is_asked_for_is_where_the_table_says(row):
    _, path, names = row
    assert set(re.findall(r'`([^`]+)`', names)) <= defined(ROOT / path)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    links = [link for link in LINK.findall(page.read_text()) if '://' not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
