import pytest

import studies


@pytest.fixture(scope='session')
def real(tmp_path_factory):
    """A folder with the report on a study of head_ct, whose networks are better than the shortcuts."""
    return studies.report(tmp_path_factory.mktemp('real'))


@pytest.fixture(scope='session')
def phantom(tmp_path_factory):
    """The same of the phantom, whose networks are not."""
    return studies.report(tmp_path_factory.mktemp('phantom'), dataset='PHANTOM', skill=1.0)
