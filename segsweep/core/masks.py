"""Passwords: addresses of servers have them, and no record, no line of the terminal and no server's row does.

An address with a password is kept in the environment of the command and of what it starts, as SEGSWEEP_ADDRESS_x; the
command line has its name from then on, so that nothing which writes a command line down (Hydra, launchers' pickles)
knows it. The name is of what is not secret of the address: where it is read again, in another environment, it is that
of the same server or of none. What is written goes through `masked`, and what other libraries say through `told` too.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

from segsweep.core.errors import ConfigError, printable

KEPT = "SEGSWEEP_ADDRESS_"
NAMED = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD")
"""Of the environment: secrets themselves."""
KEYS = ("tracking.uri", "search.storage")
"""Of a configuration: addresses."""
LEAST = 5
"""Letters of a secret below which it is not looked for outside of an address: it would be found in other words."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?![A-Za-z][A-Za-z0-9+.-]*://)[^\s\"<>`])+")
_SECRET = re.compile(r"pass|pwd|token|secret|key|auth|credential|signature|(?:^|[_.-])(?:sig|sas|pat)$", re.IGNORECASE)
"""In the name of what a query says."""
_QUERY = re.compile(r"(?<=[?&;#])([\w.%-]+)=([^&;#\s]+?)(?=[:,.]*(?:[&;#\s]|$))")
_INNER = re.compile(r"(?:^|[?&;#])\s*([\w .-]+?)\s*=\s*([^?&;#]+)")
"""In a value of a query that is a query itself, or a connection string as ODBC has them."""
_NAME = re.compile(rf"\$\\?\{{oc\.env\\?:({KEPT}\w+)\\?\}}")


def masked(text: str) -> str:
    """`https://***@host?password=***`: without the user, the password and what a query says that is secret."""
    if "://" not in text and KEPT not in text:
        return text
    text = _NAME.sub(lambda found: os.environ.get(found[1], found[0]), text)
    for address in _kept():
        if user := _user(address):
            doubled = (user.replace("'", "''"), user.replace('"', '""'))  # as YAML and CSV have it
            for written in (user, json.dumps(user)[1:-1], *doubled, repr(user)[1:-1], escape(user)):
                text = text.replace(f"{written}@", "***@").replace(f"{written}%40", "***@")
    return _ADDRESS.sub(lambda found: _masked(found[0]), text)


def told(text: str) -> str:
    """The same of words that another library found: an address may be in pieces, or read."""
    text = masked(text)
    for secret in sorted({*_secrets()}, key=len, reverse=True):
        if len(secret) >= LEAST or (len(secret) > 2 and not secret.isalnum()):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def first_line(error: object) -> str:
    """An error, or what another process has said of one, in one line, `told`, for a terminal or a record; an error
    without words by its class."""
    named = "" if isinstance(error, str) else type(error).__name__
    return printable(told(next((line for line in str(error).splitlines() if line.strip()), named).strip()))


def has_secret(address: str) -> bool:
    """Whether a text, which is one address, has any."""
    return "://" in address and _masked(address) != address


def near(address: str) -> bool:
    """Whether a store is a file or a folder below the working folder: no server, and nobody else's."""
    scheme, there, rest = address.partition("://")
    if not there:
        scheme, rest = "file", address.removeprefix("file:")
    if scheme not in ("file", "sqlite", "journal") or re.search(r"[%:?#]|^(databricks|uc)\b", rest):
        return False  # MLflow knows servers by these two words, SQLite takes other files by a query
    if there and not rest.startswith("/"):  # a host, whose path begins after it
        return False
    path = Path(rest if scheme == "file" else rest.removeprefix("/"))
    return path != Path() and path.resolve().is_relative_to(Path.cwd())


def put_away(argv: Sequence[str]) -> list[str]:
    """A command line, its addresses with a password put into the environment."""
    return [_put_away(argument) for argument in argv]


def learn(*addresses: str | None) -> None:
    """Keep addresses that a configuration gives, so that `reach` and `told` know them."""
    for address in addresses:
        if address and has_secret(address):
            _keep(address)


def learn_all(value: Any) -> None:
    """The same of every text in a plain structure."""
    if isinstance(value, str):
        learn(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            learn_all(item)


def reference(address: str) -> str:
    """An address for what is written down: the name of its place, where it has a password."""
    return f"${{oc.env:{_keep(address)}}}" if has_secret(address) else address


def hide(config: Any, shown: Callable[[str], str]) -> None:
    """Put into an OmegaConf container, in the place of every text that is an address with a secret, what `shown` makes
    of it."""
    from omegaconf import Container, ListConfig, read_write  # of what only shows text nobody needs it

    if config._is_none() or config._is_missing() or config._is_interpolation():
        return
    with read_write(config):
        for key in range(len(config)) if isinstance(config, ListConfig) else list(config):
            node = config._get_node(key)
            if isinstance(node, Container):
                hide(node, shown)
            elif isinstance(text := node._value(), str) and has_secret(text):
                config[key] = shown(text)


def reach(address: str) -> str:
    """The whole address of one that was read from a record. Raises ConfigError where nobody has said it."""
    if "***" not in address:
        return address
    for whole in _kept():
        if masked(whole) == address:
            return whole
    raise ConfigError(
        f"{address}: its password is in no record; give the whole address, as --uri or in MLFLOW_TRACKING_URI"
    )


def clean(value: Any, key: object = None) -> Any:
    """A value for JSON: every text in it masked, and that of an error as what others have said."""
    if isinstance(value, str):
        return told(value) if key in ("error", "reason", "traceback", "text") else masked(value)
    if isinstance(value, Mapping):
        return {name: clean(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item, key) for item in value]
    return value


class Formatter(logging.Formatter):
    """Of a log, which has other libraries' words."""

    def format(self, record: logging.LogRecord) -> str:
        return told(super().format(record))


def guard(handler: logging.Handler) -> None:
    """Have a log that somebody else has configured say what it says as `Formatter` does."""
    if not isinstance(handler.formatter, _Guarded | Formatter):
        handler.setFormatter(_Guarded(handler.formatter))


def guard_streams() -> None:
    """Have both streams of this process say what they say as `Stream` does."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Stream):
            setattr(sys, name, Stream(stream))


class _Guarded(logging.Formatter):
    def __init__(self, found: logging.Formatter | None):
        super().__init__()
        self._found = found or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return told(self._found.format(record))


class Stream:
    """A stream of text whose every writing is `told`. Once nobody reads it, as behind `| head`, what is written goes
    nowhere, and what writes goes on."""

    def __init__(self, stream: Any):
        self._stream, self._read = stream, True

    def write(self, text: str) -> int:
        if self._read:
            try:
                self._stream.write(told(text))
            except BrokenPipeError:
                self._read = False
        return len(text)

    def flush(self) -> None:
        if self._read:
            try:
                self._stream.flush()
            except BrokenPipeError:
                self._read = False

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _user(address: str) -> str:
    """User and password as they stand: all before the last @, as a password may have any sign in it; or before its
    %40, where whoever wrote the address has quoted that too."""
    rest = address.partition("://")[2]
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    found = rest.rpartition("@")[0] if "@" in place or ":" in place else ""
    return found or place.rpartition("%40")[0]


def _masked(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if user := _user(address):
        rest = rest[len(user) :]
        rest = f"***@{rest.removeprefix('@').removeprefix('%40')}"
    return f"{scheme}://" + _QUERY.sub(
        lambda found: f"{found[1]}=***" if found[2] != "***" and [*_of_query(*found.groups())] else found[0], rest
    )


def _of_query(key: str, value: str) -> Iterator[str]:
    """What is secret of a name and its value in a query."""
    if _SECRET.search(unquote(key)):
        yield from (value, unquote(value), unquote_plus(value))
        return
    for plain in dict.fromkeys([unquote(value), unquote_plus(value), unquote(unquote(value))]):
        yield from (found[2].strip() for found in _INNER.finditer(plain) if _SECRET.search(found[1]))
        yield from (user for found in _ADDRESS.findall(plain) if (user := _user(found)) and user != "***")


def _secrets() -> Iterator[str]:
    yield from (os.environ[name] for name in NAMED if os.environ.get(name))
    for address in _kept():
        user = _user(address)
        for word in {user.partition(":")[2] or user, user, unquote(user).partition(":")[2]} - {""}:
            yield from (word, unquote(word), *re.split(r"[@:/]", word))
        for key, value in _QUERY.findall(address.partition("://")[2].removeprefix(user)):
            yield from _of_query(key, value)


def _kept() -> list[str]:
    """Addresses with a secret that this process knows."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    names = [name for name in list(os.environ) if name.startswith(KEPT)]
    kept = [value for name in names if (value := os.environ.get(name))]  # another thread may take one back
    return [*kept, *([given] if has_secret(given) else [])]


def _keep(address: str) -> str:
    """The name of its place in the environment; one server with two passwords has two."""
    name = f"{KEPT}{hashlib.sha256(_masked(address).encode()).hexdigest()[:12]}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(name for name in names if os.environ.setdefault(name, address) == address)


def _put_away(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or "://" not in value or "${" in value:
        return argument
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    inner = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
    if not _ADDRESS.match(inner) or not has_secret(inner) or (not quoted and re.search(r"[,(){}\[\]\s]", inner)):
        return argument
    return f"{key}={reference(inner)}"
