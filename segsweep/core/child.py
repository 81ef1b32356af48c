"""Processes of Python that this program starts, and where a process looks for modules.

A script's folder and the working folder come last: a file there with the name of somebody else's module (`queue.py`,
`timeit.py`) takes the place of none, and one's own modules are found all the same. Python puts them first, so what lay
in the folder ran in each process that imported such a name, and started further ones if it was a script that starts
this program.
"""

import gc
import os
import sys

USUAL, SELDOM = gc.get_threshold(), (10_000, 10, 10)
SAFE = "PYTHONSAFEPATH"
"""Of Python itself: with it in the environment no such folder is added, as with `-P`."""


def settle() -> None:
    """Put the folders that Python itself has added to sys.path last."""
    sys.path[:] = ordered(sys.path)


def settle_command() -> None:
    """The same of the command `segsweep`, for which Python does not add the working folder as it does for `-m`."""
    settle()
    try:
        here = os.getcwd()
    except OSError:  # it is gone
        return
    if not sys.flags.safe_path and here not in map(os.path.abspath, sys.path):
        sys.path.append(here)


def quiet() -> None:
    """Have the log take the warnings that other people's packages give of themselves, not the screen: who uses this
    program can do nothing about them. Hydra's and OmegaConf's stay, which are of the configuration."""
    import logging  # as signal below
    import warnings

    shown = warnings.showwarning

    def show(message: object, category: type, filename: str, lineno: int, *more: object, **named: object) -> None:
        parts = filename.split(os.sep)
        installed = {"site-packages", "dist-packages"} & {*parts} and not {"hydra", "omegaconf"} & {*parts}
        if installed or filename.startswith(os.path.dirname(os.__file__)):
            logging.getLogger("py.warnings").info("%s:%s: %s: %s", filename, lineno, category.__name__, message)
        else:
            shown(message, category, filename, lineno, *more, **named)  # type: ignore[arg-type]

    warnings.showwarning = show


def look_seldom() -> None:
    """Have Python look through what there is for garbage less often, until a job runs in this process. Imports and
    configurations are a million objects, of which hardly one goes: at its own pace it takes a second of a sweep's first
    five."""
    gc.set_threshold(*SELDOM)


def look_as_usual() -> None:
    """For what trains here, whose cycles may hold tensors; what is there by now is not looked through again."""
    if gc.get_threshold() == SELDOM:
        gc.freeze()
        gc.set_threshold(*USUAL)


def leave_at_once() -> None:
    """Have a Ctrl-C end this process, as long as nobody says otherwise. Before the first job there is nothing to save,
    and an exception would meet torch's C++ half imported (abort). Not where somebody types (a notebook runs scripts in
    its kernel, which is to stay)."""
    import signal  # not at the top: of `settle` it would be the one in the working folder

    if hasattr(sys, "ps1"):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not what a script started with &
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def ordered(path: list[str]) -> list[str]:
    """`path` with the script's and the working folder last. What PYTHONPATH names is a choice and stays where it is."""
    late = added(path)
    return [entry for entry in path if os.path.abspath(entry) not in late] + late if late else path


def added(path: list[str]) -> list[str]:
    """The entries of `path` that are there for the script or the working folder, absolute."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        folders = {os.getcwd(), *([os.path.dirname(os.path.abspath(script))] if script else [])}
        folders -= named()
        return [entry for entry in dict.fromkeys(map(os.path.abspath, path)) if entry in folders]
    except OSError:  # the working folder is gone
        return []


def installed(package: str) -> bool:
    """Whether a package is there, and not in the script's or the working folder: configurations may ask for it."""
    from importlib.util import find_spec

    spec = find_spec(package)
    place = os.path.dirname(os.path.abspath(spec.origin)) if spec and spec.origin else ""
    folder = os.path.dirname(place) if spec and spec.submodule_search_locations else place
    return spec is not None and folder not in added(sys.path)


def named() -> set[str]:
    """What PYTHONPATH names, absolute."""
    return {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}


def command(code: str, *arguments: str) -> list[str]:
    """Of a process that runs `code` with the modules of this one; sys.argv[1:] are its `arguments`."""
    import json  # not at the top: of `settle` it would be the one in the working folder

    begin = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    return [sys.executable, "-P", "-c", begin + code, json.dumps(ordered(sys.path)), *arguments]


def join(folders: list[str], safe: bool) -> None:
    """In a process that others have started for one that looks for modules in `folders` after all others: so does this.

    safe: whether that one was itself started with SAFE, which else is taken back, as what a job starts is its own
    matter."""
    if not safe:
        os.environ.pop(SAFE, None)
    sys.path += [folder for folder in folders if folder not in sys.path]
