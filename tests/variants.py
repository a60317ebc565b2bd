"""Parameters that the default run leaves out, as others show the same behaviour."""

import pytest


def variant(*values):
    """The values of one more set of parameters, under the marker `variant`."""
    return pytest.param(*values, marks=pytest.mark.variant)
