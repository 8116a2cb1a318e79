"""What several tests train on."""

import pytest
from in_process import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A config whose tokenizer and shards exist."""
    return prepare(tmp_path_factory.mktemp("prepared"))
