"""`python -m segsweep`: check the command line, let Hydra compose and launch, close the sweep's record.

Imports neither torch nor mlflow nor optuna, so that `--help` and `--cfg job` answer at once.
"""

import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from segsweep.config import trust, whitelist
from segsweep.config.schema import conf_dir
from segsweep.config.start import Started, start
from segsweep.core import child, masks
from segsweep.core.errors import SegsweepError
from segsweep.core.program import COMMANDS, typed
from segsweep.core.session import session

if TYPE_CHECKING:
    from segsweep.sweeps.sweep import Sweep

FULL = "HYDRA_FULL_ERROR"
ASKS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version", "--shell-completion", "-sc"}


def main(raising: bool = False) -> int:
    """The exit code: 0 well, 1 a job failed or the command line is wrong, 130 stopped. raising: for who calls it
    from Python: a mistake of the command line is a SegsweepError, and progress is plain lines.

    Signals and streams are, after it, those of whoever calls it, such as a notebook."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    streams, shown = (sys.stdout, sys.stderr), warnings.showwarning
    start()
    child.quiet()
    sys.stdout, sys.stderr = map(masks.Stream, streams)
    try:
        return _guarded(raising)
    finally:
        sys.stdout, sys.stderr = streams
        warnings.showwarning = shown
        for number, handler in signals.items():
            _on(number, handler)


def _on(number: int, handler: Any) -> None:
    """In another thread than the first Python takes no handler: a Ctrl-C is told to that one."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _guarded(raising: bool) -> int:
    try:
        return _main(raising)
    except BaseException as error:  # a Ctrl-C after the last job
        # Any exception after a Ctrl-C is its doing: a library that is met half-way (OmegaConf with a flag changed) may
        # fail in putting things back.
        if not (session().heard or isinstance(error, KeyboardInterrupt)):
            raise
        if pool := session().pool:
            pool.close()
        if (lead := session().sweep) and lead.folder:
            again = f"{typed('report')} {lead.folder}"
            print(f"\nStopped. The runs are recorded; table and report again: {again}", file=sys.stderr)
        return 130


def _main(raising: bool) -> int:
    if odd := [argument for argument in sys.argv[1:] if not argument.isascii() and not _is_utf8(argument)]:
        shown = odd[0].encode("ascii", "backslashreplace").decode()
        print(f"{shown}: not UTF-8, in which records are", file=sys.stderr)
        return 1
    sys.argv[1:] = masks.put_away(sys.argv[1:])
    if sys.argv[1:] == ["-sc", "query=bash"]:
        return _complete(os.environ.get("COMP_LINE", ""))
    if ASKS & {argument.split("=")[0] for argument in sys.argv[1:]}:
        if session().door is None and {"-sc", "--shell-completion"} & set(sys.argv[1:]):
            sys.argv[0] = "segsweep"  # else it would be installed for `python`, whose -m it does not know
        try:
            if args := trust.question(sys.argv[1:]):
                from segsweep.config.hold import held

                held(args)
            answer = Started(lambda cfg: None, "segsweep.sweeps.job")  # which does more than answer
            _folded(answer) if {"--help", "-h"} & set(sys.argv[1:]) else _answered(answer)
        except (HydraException, OmegaConfBaseException) as error:
            cause = [error.__cause__] if error.__cause__ else []
            print(str(error).strip(), *cause, sep="\n", file=sys.stderr)
            return 1
        except (YAMLError, UnicodeError, AttributeError) as error:  # the last are Hydra's, of `hydra: null`
            print(f"a file of it is no configuration: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
        except (SegsweepError, ValueError) as error:  # the second: two questions at once, -m --cfg job among them
            print(error, file=sys.stderr)
            return 1
        return 0
    from segsweep.sweeps import worker  # what only answers has no need of these

    pool = worker.pool()
    if _in_workers(sys.argv[1:]):
        pool.start_early()
    from segsweep.sweeps import sweep
    from segsweep.sweeps.command import command
    from segsweep.sweeps.preflight import preflight

    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]  # argparse wants them first
    sys.argv[1:] = [*flags, *(argument for argument in sys.argv[1:] if argument not in flags)]
    asked = command()
    try:
        whitelist.own()
        checked = preflight(sys.argv[1:])
    except SegsweepError as error:
        if raising:
            raise
        print(error, file=sys.stderr)
        return 1
    sys.argv[1:] = checked.argv
    session().foreign, session().hold = checked.foreign, checked.hold
    lead = session().sweep = sweep.Sweep(checked.jobs, asked)
    try:
        return _led(lead, checked, raising)
    finally:
        lead.release()


def _led(lead: "Sweep", checked: Any, raising: bool) -> int:
    """Have Hydra launch what was checked, and close the record."""
    from segsweep.sweeps.display import Display
    from segsweep.sweeps.job import job

    stopped, code = False, 0
    with Display(checked.jobs, plain=raising or (checked.here and session().door is not None)) as display:
        session().sink = display.handle
        _on(signal.SIGINT, _on_signal)
        _on(signal.SIGTERM, _on_signal)
        try:
            _hydra(Started(job))
        except (KeyboardInterrupt, SystemExit) as error:
            stopped = session().heard or isinstance(error, KeyboardInterrupt)
            found = getattr(error, "code", None)  # a text of somebody's, say, or nothing
            code = 0 if stopped or found in (None, 0) else found if isinstance(found, int) else 1
            if not stopped and lead.abandon():
                return code
        finally:
            if pool := session().pool:
                pool.close()
            _on(signal.SIGINT, _interrupt)
    return max(lead.finish(stopped), code)


def _complete(line: str) -> int:
    """Hydra's words for the last one of a command line that is being typed, each of several values too, and what it
    does not know: this program's commands, whose arguments are files, and flags. Of what cannot be composed nothing: a
    message would be written into what is typed."""
    import contextlib
    import io

    words = line.split()[1:]
    last = words[-1] if words and not line.endswith(" ") else ""
    commands = COMMANDS if session().door is None else {}
    if len(words) > bool(last) and words[0] in commands:
        return 0
    if last.startswith("-"):
        print(*sorted(flag for flag in get_args_parser()._option_string_actions if flag.startswith("--")))
        return 0
    key, equals, value = last.rpartition("=")
    earlier = value.rpartition(",")[0] + "," * ("," in value) if equals else ""
    os.environ["COMP_LINE"] = line.removesuffix(last) + key + equals + value.removeprefix(earlier)
    told = io.StringIO()
    with (
        contextlib.redirect_stdout(told),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(BaseException),
    ):
        _hydra(Started(lambda cfg: None, "segsweep.sweeps.job"))
    found = [key + equals + earlier + word.removeprefix(key + equals) for word in told.getvalue().split()]
    print(*found, *([] if len(words) > bool(last) else commands))
    return 0


def _answered(answer: Started) -> None:
    """Hydra's answer. Raises what is wrong, of which Hydra itself shows a traceback here and there."""
    before = os.environ.get(FULL)
    os.environ[FULL] = "1"
    try:
        _hydra(answer)
    finally:
        os.environ.pop(FULL) if before is None else os.environ.update({FULL: before})


def _folded(answer: Started) -> None:
    """Hydra's help, in which a group is one line however many options it has."""
    import io
    import textwrap
    from contextlib import redirect_stdout

    told = io.StringIO()
    try:
        with redirect_stdout(told):
            _answered(answer)
    finally:  # Hydra ends the process
        folded = []
        for line in told.getvalue().splitlines():
            group = line.partition(": ")[0].replace("/", "_").isidentifier()
            folded += textwrap.wrap(line, 110, subsequent_indent="  ") if group else [line]
        if folded:
            print("\n".join(folded))


def _is_utf8(text: str) -> bool:
    """Python keeps bytes of an argument that are none as halves of pairs, which nothing can write."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _in_workers(argv: list[str]) -> bool:
    """Whether a command line looks as if it will need a worker; if it does not after all, one was started in vain."""
    launchers = [argument.partition("=")[2] for argument in argv if argument.startswith("hydra/launcher=")]
    return bool({"-m", "--multirun"} & set(argv)) and (launchers or ["local"])[-1] == "local"


def _hydra(task: Started) -> Any:
    if door := session().door:
        given = door.whitelist if door.app else whitelist.hydras()
        allowed = [*given, *whitelist.HYDRAS] if isinstance(given, list | tuple) else given
        place, name = (door.config_path if door.app else None) or trust.NOWHERE, door.config_name
        base = {} if door.version_base is None else {"version_base": door.version_base}
        with warnings.catch_warnings():  # that this program's own callback is none of the application's whitelist
            warnings.filterwarnings("ignore", f"hydra.utils.instantiate.* resolved _target_='{whitelist.HYDRAS[0]}'")
            return hydra.main(config_path=place, config_name=name, execution_whitelist=allowed, **base)(task)()
    return hydra.main(config_path=str(conf_dir()), config_name="config", execution_whitelist=whitelist.hydras())(task)()


def _interrupt(number: int, frame: FrameType | None) -> None:
    session().heard = True
    raise KeyboardInterrupt


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and not session().stopping():
        session().stop()
        os.write(2, b"\nFinishing the epoch, then stopping. Ctrl-C again stops now.\n")
    else:
        _interrupt(number, frame)
