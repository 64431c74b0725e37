"""Files and folders that others can change or read: the cache, and runs below the working directory."""

from __future__ import annotations

import os
import shlex
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.cli.finding import Finding
from metrics.files.hashing import file_sha256

MOST_FILES = 100_000
"""Files that a walk looks at."""
NAMED = 3
"""Files that a finding names."""
SCRIPTS = frozenset({".pt", ".pth", ".ts", ".jit", ".torchscript"})
"""Suffixes of files that may hold TorchScript."""
OWN = "a folder of your own"
MARKS_OF_RUN = frozenset({"spec.toml", "plan.json"})
"""Files whose folder is a run or a study."""


@dataclass
class Walked:
    """The findings of a walk through a folder."""

    writable: list[Path] = field(default_factory=list)
    """Files and folders that every user may write."""
    foreign: list[Path] = field(default_factory=list)
    """Those of another user."""
    leaving: list[Path] = field(default_factory=list)
    """Links whose targets are outside of the folder."""
    scripts: list[Path] = field(default_factory=list)
    """Files of TorchScript, which are programs."""
    unread: list[Path] = field(default_factory=list)
    """Folders that this user cannot look into."""
    runs: int = 0
    complete: bool = True
    """No more than `MOST_FILES` files were found."""


def walked(folder: Path) -> Walked:
    """Look at a folder and all that is below it, except hidden folders; links are not followed."""
    found, root = Walked(), folder.resolve()
    for number, path in enumerate(_below(folder, found.unread)):
        if number >= MOST_FILES:
            found.complete = False
            break
        try:
            about = path.lstat()
        except OSError:
            continue
        if stat.S_ISLNK(about.st_mode):
            if not path.resolve().is_relative_to(root):
                found.leaving.append(path)
            continue
        if about.st_mode & stat.S_IWOTH:
            found.writable.append(path)
        if about.st_uid not in (os.getuid(), 0):
            found.foreign.append(path)
        # A pipe would wait for someone who writes into it.
        if path.suffix in SCRIPTS and stat.S_ISREG(about.st_mode) and is_torchscript(path):
            found.scripts.append(path)
        found.runs += path.name in MARKS_OF_RUN
    return found


def _below(folder: Path, unread: list[Path]) -> Iterator[Path]:
    """Yield a folder and all that is below it; add the folders that cannot be read to `unread`."""
    yield folder
    for parent, folders, files in os.walk(folder, onerror=lambda error: unread.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in (*folders, *sorted(files)))


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a zip archive with code, which `torch.jit.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def cache_findings(root: Path) -> list[Finding]:
    """Return what is open about the cache, whose content runs and evaluations trust."""
    if not root.exists():
        return [Finding("ok", "cache", f"{root} does not exist yet; it is created for this user alone")]
    about, found = root.stat(), walked(root)
    quoted, problems = shlex.quote(str(root)), []
    if about.st_uid != os.getuid():
        problems.append(f"{root} belongs to user {about.st_uid}; set FLOWRACE_CACHE to {OWN}")
    elif mode := stat.S_IMODE(about.st_mode) & 0o077:
        how = "write" if mode & 0o022 else "read"
        problems.append(f"other users may {how} {root}; close it with chmod 700 {quoted}")
    if root.is_symlink():
        problems.append(f"{root} is a link to {root.resolve()}; set FLOWRACE_CACHE to that folder")
    if inner := [path for path in found.writable if path != root]:
        problems.append(f"every user may write {_named(inner)}; close them with chmod -R go-w {quoted}")
    if found.foreign and about.st_uid == os.getuid():
        problems.append(f"{_named(found.foreign)} belong to other users; remove them")
    if found.leaving:
        problems.append(f"{_named(found.leaving)} lead out of the cache; remove these links")
    opened = [Finding("open", "cache", problem) for problem in problems] + _unread(found, "cache")
    ok = Finding("ok", "cache", f"{root} belongs to this user alone{_cut(found)}")
    return [*(opened or [ok]), *_scripts(found, "cache")]


def run_findings(folder: Path) -> list[Finding]:
    """Return what is open about the runs and studies in a folder."""
    found = walked(folder)
    opened = []
    if found.writable:
        text = f"every user may write {_named(found.writable)}; close them with chmod -R o-w "
        opened.append(Finding("open", "runs", text + shlex.quote(str(folder))))
    if found.foreign:
        text = f"{_named(found.foreign)} belong to other users; copy what you trust into {OWN}"
        opened.append(Finding("open", "runs", text))
    opened += _unread(found, "runs")
    # A file that the group may write is no finding: with a group for each user that is the usual umask.
    text = f"{found.runs} runs and studies in {folder}, without files that every user may write{_cut(found)}"
    return [*(opened or [Finding("ok", "runs", text)]), *_scripts(found, "folder")]


def _unread(found: Walked, what: str) -> list[Finding]:
    """Return that folders were not looked at, with the command that opens them to this user."""
    if not found.unread:
        return []
    text = f"{_named(found.unread)} cannot be read, and may hold anything; look again after chmod u+rwx "
    return [Finding("bad", what, text + shlex.join(map(str, found.unread[:NAMED])))]


def _scripts(found: Walked, where: str) -> list[Finding]:
    """Return the TorchScript files of a folder with their checksums; as extractors, they run as programs."""
    if not found.scripts:
        return [Finding("ok", f"programs in {where}", "no TorchScript file, which would be a program")]
    return [
        Finding(
            "note",
            f"programs in {where}",
            f"{path} is a program if it is named as extractor; trust it by its content alone: "
            f"torchscript:{path}?sha256={file_sha256(path)}",
        )
        for path in found.scripts
    ]


def _named(paths: list[Path]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(map(str, paths[:NAMED])) + more


def _cut(found: Walked) -> str:
    return "" if found.complete else f" (the first {MOST_FILES:,} files)"
