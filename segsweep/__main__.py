"""`python -m segsweep`. Nothing is imported until it is the program: decoding workers re-import this module."""


def main() -> int:
    import sys

    from segsweep.core import child, program

    if sys.argv[1:] and sys.argv[1] in program.COMMANDS:
        child.settle_command()
        return _leave(program.run(sys.argv.pop(1)))
    child.leave_at_once()
    try:
        child.settle_command()
        child.look_seldom()
        from segsweep.sweeps.cli import main as run

        return _leave(run())
    except SystemExit as end:  # Hydra's, of a question
        if not isinstance(end.code, int | None):
            raise
        return _leave(end.code or 0)
    except KeyboardInterrupt:  # a Ctrl-C amid the imports
        return 130


def _leave(code: int) -> int:
    """End the process in the interpreter's own order (threads, exit functions, streams), but for its last step, which
    takes a second or two: to take apart, object by object, all that torch, matplotlib and MLflow have made.

    Returns where a stream cannot be written, which the interpreter then says."""
    import atexit
    import os
    import sys
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # nobody reads it any more
            continue
        except (OSError, ValueError):
            return code
    os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
