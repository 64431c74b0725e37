"""`flowrace doctor --security`: what is open for this user and this folder, and what to type to close it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from harness.cli.finding import Finding
from harness.cli.listening import listening
from harness.cli.security_files import cache_findings, run_findings
from harness.config import registry
from harness.files import pictures
from harness.files.cache import cache_root
from harness.records.mlflow_store import is_address, shown
from metrics.files import containers
from metrics.files.media import VIDEO, Encoded
from metrics.value import MetricError

TRACKING = "MLFLOW_TRACKING_URI"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OFFLINE = "HF_HUB_OFFLINE"
SESSION = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
"""A session description, for which FFmpeg opens a socket unless its demuxers are restricted."""


def examine_security(folder: Path) -> list[Finding]:
    """Return every finding: files first, then addresses, code of others, media and settings."""
    return [
        *examined("cache", lambda: cache_findings(cache_root())),
        *examined("runs", lambda: run_findings(folder)),
        Finding(
            "ok", "pickles", "no file is unpickled: .npy, .npz, .pt and parquet with objects are refused"
        ),
        tracking(os.environ),
        *listening(),
        *plug_ins(),
        media(),
        images(),
        *hub(os.environ),
        umask(),
    ]


def examined(what: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return findings, or a note if this user may not look: for example below a folder without x."""
    try:
        return list(look())
    # RuntimeError: a path begins with ~, and the user has no home folder.
    except (OSError, ValueError, RuntimeError) as error:
        return [Finding("note", what, f"not examined: {error}")]


def tracking(environment: Mapping[str, str]) -> Finding:
    """Return whether the tracking URI reveals a password or is sent unencrypted; it is shown without one."""
    uri = environment.get(TRACKING, "")
    public = shown(uri)
    if not uri:
        return Finding("ok", "tracking", "sqlite:///mlflow.db in the working directory, without a server")
    if has_credentials(uri):
        return Finding(
            "open",
            "tracking",
            f"{TRACKING} ({public}) has a user name or a password, which other programs of this user "
            "can read; remove them from it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or for a database its password file",
        )
    if not is_address(uri):
        # The address is not printed, because what it holds is not known.
        return Finding(
            "open", "tracking", f"{TRACKING} is no address; correct it, for example http://[::1]:5000"
        )
    parts = urlsplit(uri)
    if parts.scheme == "http" and not _is_local(parts.hostname or ""):
        return Finding("open", "tracking", f"{public} is not encrypted; set {TRACKING} to https://")
    return Finding("ok", "tracking", f"{public}, without user name and password")


def has_credentials(uri: str) -> bool:
    """Return whether a URI has a user name, a password, or a setting that is named as one.

    >>> has_credentials("https://ann:x@host"), has_credentials("https://host/?token=x")
    (True, True)
    >>> has_credentials("sqlite:////home/ann/mlflow.db")
    False
    """
    return shown(uri) != uri


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def plug_ins() -> Iterator[Finding]:
    """Yield the packages that add methods, data sets, encoders or codecs: their code runs with flowrace."""
    found = [
        (kind, name, point)
        for kind in registry.KINDS
        for name, point in sorted(registry.plugins(kind).items())
    ]
    if not found:
        yield Finding("ok", "plug-ins", "no other package adds methods, data sets, encoders or codecs")
    for kind, name, point in found:
        package = point.dist.name if point.dist else point.value
        text = (
            f"{kind.replace('_', ' ')} '{name}' runs code of the package {package}; if you do not trust it: "
            f"pip uninstall {package}"
        )
        yield Finding("note", "plug-ins", text)


def media() -> Finding:
    """Return whether FFmpeg refuses formats that name other files or addresses."""
    allowed = f"FFmpeg opens {', '.join(containers.FORMATS)} alone, and no address"
    if find_spec("av") is None:
        return Finding("ok", "media", "PyAV is not installed, so FFmpeg opens nothing")
    try:
        with containers.container(Encoded("a session description", SESSION), VIDEO):
            text = "FFmpeg opened a session description, which names addresses; pip install --upgrade av"
            return Finding("open", "media", text)
    except MetricError:
        return Finding("ok", "media", allowed)


def images() -> Finding:
    """Return the formats of pictures that are opened."""
    text = f"Pillow opens {', '.join(pictures.FORMATS)} alone, of at most {pictures.LARGEST:,} pixels"
    return Finding("ok", "pictures", text)


def hub(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether others can read a token of the Hugging Face hub, and whether downloads can occur."""
    yield from examined("hub token", lambda: [hub_token(environment)])
    if environment.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("ok", "downloads", f"{OFFLINE} is set: nothing is downloaded")
    else:
        text = f"only with --download or download = true; to forbid them: export {OFFLINE}=1"
        yield Finding("note", "downloads", text)


def hub_token(environment: Mapping[str, str]) -> Finding:
    """Return whether others can read a token of the hub; raises `OSError` if its file cannot be examined."""
    named = [name for name in TOKENS if environment.get(name)]
    file = token_file(environment)
    if file.is_file() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        return Finding("open", "hub token", f"other users may read {file}; close it with chmod 600 {file}")
    if named or file.is_file():
        text = f"a token in {named[0] if named else file}; it is used by downloads alone, and never recorded"
        return Finding("note", "hub token", text)
    return Finding("ok", "hub token", "no token of the Hugging Face hub")


def token_file(environment: Mapping[str, str]) -> Path:
    """Return where the hub's login keeps its token."""
    if named := environment.get("HF_TOKEN_PATH"):
        return Path(named).expanduser()
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "token"


def umask() -> Finding:
    """Return whether new files are writable by others."""
    mask = os.umask(0o077)
    os.umask(mask)
    if mask & 0o002:
        state = "note" if mask & 0o020 == 0 else "ok"
        text = "new files can be written by the group; to end this: umask 022" if state == "note" else ""
        return Finding(state, "umask", f"{mask:03o}: {text or 'new files are written by this user alone'}")
    return Finding("open", "umask", f"{mask:03o}: every user may write new files; type umask 022")
