import json

import pytest

from course.errors import UsageError
from course.evaluation import parity

pytest.importorskip("diffusers")


@pytest.mark.parametrize("name", parity.CASES)
def test_equal_to_the_reference(name):
    row, = [r for r in parity.run(name) if r.name == name]
    assert row.passed and row.max_abs_error >= 0, row


def test_a_difference_is_found(monkeypatch):
    """The comparison itself: an epsilon of GroupNorm that is ten times too large must not pass."""
    from torch import nn

    from course import layers
    monkeypatch.setattr(layers, "group_norm", lambda channels, eps: nn.GroupNorm(32, channels, eps=100 * eps))
    row, = parity.run("VAE decoder")
    assert not row.passed


def test_unknown_names_and_the_command(capsys):
    with pytest.raises(UsageError, match="no comparison"):
        parity.run("U-Net, Flux")
    from typer.testing import CliRunner

    from course.cli import app
    done = CliRunner().invoke(app, ["bench", "parity", "--only", "quantiser", "--json"])
    row, = json.loads(done.stdout)
    assert done.exit_code == 0 and row["passed"] and row["reference"].startswith("diffusers")
