"""config.json files as published are described, with the sizes that they say."""

import pytest

from stackjax.interop import hf
from tests.interop.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_described(name):
    config = PUBLISHED[name]
    model = hf.describe(config)
    assert max(shape[0] for shape in hf.addresses(model).values()) >= config.get("vocab_size", 1)


def test_they_are_many_and_of_every_built_in_family():
    assert len(PUBLISHED) >= 60
    assert {config["model_type"] for config in PUBLISHED.values()} == set(hf.ARCHITECTURES)
