"""Names and errors on the terminal are text: no markup of rich's, and nothing that a terminal obeys."""

import io

import pytest
from rich.console import Console

from segsweep.sweeps.display import Display


@pytest.mark.parametrize("terminal", [True, False])
def test_names_and_errors_are_shown_as_they_are_and_command_nothing(terminal):
    out = io.StringIO()
    with Display(1, console=Console(file=out, force_terminal=terminal, width=200)) as display:
        name = "model.act='[/_]' [bold]x\x1b]0;title\x07"
        display.handle({"kind": "start", "job": 0, "name": name})
        display.handle({"kind": "step", "job": 0, "epoch": 1, "epochs": 1, "done": 0.5, "text": "[/a]"})
        display.handle({"kind": "end", "job": 0, "status": "failed", "error": "[/b]\x1b[2J"})
    shown = out.getvalue()
    assert "model.act='[/_]' [bold]x ]0;title" in shown
    assert "[/b] [2J" in shown
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown
