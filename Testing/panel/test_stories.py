"""The stories of a user at the panel, in the host."""

import sys

import pytest

story = sys.modules["panel_story"]


@pytest.mark.parametrize("tell", story.STORIES, ids=lambda tell: tell.__name__)
def test_story(panel, tell):
    tell(panel)
