#!/usr/bin/env python3
"""Makes libtorch ready (and cmake, where there is none) and prints the environment in which cargo finds them.

Decides: where libtorch comes from (the user's own, the user's PyTorch, else the pinned wheels) and what lies in the cache folder.
Never:   writes inside the checkout, changes a libtorch the user brought, or takes a half-done folder for a finished one. Folders are
         made beside their place and renamed, or carry a stamp that is written last; with all stamps there, no network is touched.

    libtorch.py            libtorch for the CPU                             -> export lines on stdout
    libtorch.py --cuda     libtorch with all of CUDA, for container images  -> export lines on stdout
    libtorch.py --clients  the environment of tests/clients                 -> the path of its python on stdout

All talk goes to stderr, so that `eval "$(libtorch.py)"` sees only the result.

    cache folder, ${PENSTOCK_CACHE:-${XDG_CACHE_HOME:-~/.cache}/penstock}
      libtorch-2.11.0-cpu/   include/ lib/ build-version stamp
      cmake/                 only where PATH has no cmake
      tools-python3.X/       a recent pip, which fetches the others
      clients-python3.X/     what tests/clients/requirements.txt lists
      partial-*/             work in progress; kept after a failure, so that a finished download is not repeated
      lock                   held by the one set-up that works here
"""

import argparse
import fcntl
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
TORCH = "2.11.0"  # the one version torch-sys 0.24 accepts; libtorch.txt pins the same
CPU_LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
CHILD = {"stdin": subprocess.DEVNULL, "text": True, "close_fds": False}  # not closing hands the lock on: see cache_folder
LAYOUT = 1  # counts up when this script lays folders out differently: older ones are then made anew
GB = 10**9
DOWNLOAD = {"cpu": 0.55 * GB, "cuda": 2.6 * GB}
PEAK = {"cpu": 1.3 * GB, "cuda": 8 * GB}  # disk in use at the worst moment, when wheels lie beside their copies or contents


class SetupError(Exception):
    """One line for the user: what is wrong, and what to do about it."""


def main():
    parser = argparse.ArgumentParser(description="Makes ready what the engine is built with. See the top of this file.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--cuda", action="store_true", help="with all CUDA libraries, for container images")
    choice.add_argument("--clients", action="store_true", help="only make the python of tests/clients, and print its path")
    arguments = parser.parse_args()
    try:
        if sys.version_info < (3, 10):
            raise SetupError(f"python3 is {platform.python_version()}, but 3.10 or newer is needed: put one first on PATH")
        if arguments.clients:
            print(clients())
        else:
            print_environment("cuda" if arguments.cuda else "cpu")
    except SetupError as error:
        sys.exit(f"penstock set-up: {error}")
    except OSError as error:
        sys.exit(f"penstock set-up: {error}: the cache folder must be writable and have room; PENSTOCK_CACHE chooses another")
    except KeyboardInterrupt:
        sys.exit("penstock set-up: interrupted; run the same command to go on")


def clients():
    with cache_folder() as cache:
        return venv(cache, "clients", pins(CHECKOUT / "tests/clients/requirements.txt"))


def print_environment(kind):
    own, has_cmake = users_libtorch(), shutil.which("cmake")
    exports = [own] if own else []
    if not (own and has_cmake):
        with cache_folder() as cache:
            if not own:
                exports.append(f"export LIBTORCH={shlex.quote(str(libtorch(cache, kind)))}")
            if not has_cmake:
                exports.append(f'export PATH={shlex.quote(str(cmake(cache)))}:"$PATH"')
    print("\n".join(exports))


def say(text):
    print(f"penstock set-up: {text}", file=sys.stderr, flush=True)


def run(command):
    return subprocess.run(command, capture_output=True, **CHILD)


def last_line(text):
    return (text.strip().splitlines() or ["it said nothing"])[-1]


# --- a libtorch the user brings ---


def users_libtorch():
    """The export line for it, None if it is ours to fetch. torch-sys looks at LIBTORCH_USE_PYTORCH before LIBTORCH, so we do."""
    use_pytorch, folder = os.environ.get("LIBTORCH_USE_PYTORCH"), os.environ.get("LIBTORCH")
    if use_pytorch is not None:
        check_users_pytorch(use_pytorch)
        return "export LIBTORCH_USE_PYTORCH=1"
    if folder:
        folder = Path(folder).absolute()
        check_users_folder(folder)
        return f"export LIBTORCH={shlex.quote(str(folder))}"
    return None


def check_users_pytorch(value):
    if value != "1":
        raise SetupError(f"LIBTORCH_USE_PYTORCH is {value!r}: set it to 1 or unset it (torch-sys takes any value for yes)")
    python = "python" if os.environ.get("VIRTUAL_ENV") else "python3"  # as torch-sys chooses
    question = "import importlib.metadata; print(importlib.metadata.version('torch'))"
    answer = run([python, "-c", question])
    if answer.returncode != 0:
        raise SetupError(f"LIBTORCH_USE_PYTORCH=1, but {python} has no torch: install torch {TORCH} for it, or unset the variable")
    check_version(answer.stdout.strip(), f"the torch of {python}")


def check_users_folder(folder):
    for part in ("include", "lib/libtorch_cpu.so"):
        if not (folder / part).exists():
            raise SetupError(f"LIBTORCH is {folder}, but that has no {part}: correct it, or unset it to have libtorch fetched")
    build_version, header = folder / "build-version", folder / "include/torch/headeronly/version.h"
    if build_version.exists():
        version = build_version.read_text().strip()
    elif header.exists():
        version = ".".join(re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text()))
    else:
        version = "unknown"
    check_version(version, f"LIBTORCH={folder}")


def check_version(version, whose):
    series = TORCH.rsplit(".", 1)[0]
    if not version.startswith(series + ".") and "LIBTORCH_BYPASS_VERSION_CHECK" not in os.environ:
        raise SetupError(f"{whose} has version {version}, but {series} is needed: bring that, or unset the variable to have it fetched")


# --- the libtorch we fetch ---


def libtorch(cache, kind):
    """The finished folder `libtorch-2.11.0-cpu` or `-cuda`."""
    folder, wanted = cache / f"libtorch-{TORCH}-{kind}", pins(HERE / "libtorch.txt")
    if stamped(folder, wanted):
        return folder
    compiler = cxx()  # found missing after the download, it would cost the user the wait
    with making(folder, wanted) as work:
        need_space(work, PEAK[kind])
        say(f"fetching libtorch {TORCH} for {kind} into {cache}: about {DOWNLOAD[kind] / GB:g} GB, once")
        wheels = download(pip_python(cache), work, kind)
        say("unpacking")
        unpack(wheels, work / "done", kind)
        if kind == "cpu":
            link_stand_in(compiler, work / "done/lib")
    say(f"libtorch is in {folder}")
    return folder


def download(python, work, kind):
    """The same wheels on every machine: those for CPython 3.11, whose C++ part is all we use."""
    if kind == "cpu":
        what = ["--require-hashes", "--no-deps", "--requirement", HERE / "libtorch.txt"]
    else:
        what = [f"torch=={TORCH}"]  # its metadata names the exact CUDA libraries it was built against
    wheel_tags = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311"]
    wheel_tags += [f"--platform=manylinux{tag}_x86_64" for tag in (*(f"_2_{minor}" for minor in range(28, 16, -1)), "2014")]
    pip(python, work, "download", *what, *wheel_tags, "--resume-retries=20", "--no-cache-dir", "--dest", work / "wheels")
    return sorted((work / "wheels").glob("*.whl"))


def unpack(wheels, into, kind):
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                place = place_of(name, kind)
                if place is None:
                    continue
                (into / place).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(into / place, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            if wheel.name.startswith("torch-"):
                version = re.search(r"__version__ = '(.+)'", archive.read("torch/version.py").decode())
                (into / "build-version").write_text(version[1] + "\n")  # torch-sys compares it with its own
    missing = CPU_LIBRARIES - {path.name for path in into.glob("lib/*")}
    if missing:
        raise SetupError(f"the wheels of libtorch.txt lack {', '.join(sorted(missing))}: were its versions changed?")


def place_of(name, kind):
    """Where a wheel's file goes, None if it is not needed. All libraries lie together: their search paths end in $ORIGIN."""
    if name.startswith("torch/include/") and not name.endswith("/"):
        return name.removeprefix("torch/")
    library = re.fullmatch(r"(?:torch|nvidia/.+)/lib/([^/]+\.so[.\d]*)", name)
    if library and (library[1] in CPU_LIBRARIES or (kind == "cuda" and library[1] != "libtorch_python.so")):
        return f"lib/{library[1]}"
    return None


def link_stand_in(compiler, lib):
    """torch-sys links -ltorch, and AOTInductor packages ask for libtorch.so, but the wheel's own drags in all of CUDA.
    This one is empty and only leads on to the CPU libraries."""
    command = [*compiler, "-shared", "-nostdlib", "-x", "c++", "/dev/null", "-o", lib / "libtorch.so", "-Wl,-soname,libtorch.so"]
    command += ["-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", f"-L{lib}", "-ltorch_cpu", "-lc10"]
    linked = run(command)
    if linked.returncode != 0:
        raise SetupError(f"`{shlex.join(compiler)}` cannot link a shared library: {last_line(linked.stderr)}")


def cxx():
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    raise SetupError(f"CXX is {chosen!r}, which is not on PATH" if chosen else "no C++ compiler: type `sudo apt-get install g++`")


# --- cmake, and python environments ---


def cmake(cache):
    """The folder of cmake's own binaries: put on PATH, it hides nothing else."""
    folder, wanted = cache / "cmake", tool_pin("cmake")
    if not stamped(folder, wanted):
        with making(folder, wanted) as work:
            need_space(work, 0.2 * GB)
            say("fetching cmake: 28 MB, once")
            install(pip_python(cache), work, wanted, "--target", work / "done")
    return folder / "cmake/data/bin"


def pip_python(cache):
    """A python whose pip is recent: older ones do not take up a broken download where it broke."""
    return venv(cache, "tools", tool_pin("pip"))


def tool_pin(name):
    return next(line for line in pins(HERE / "tools.txt").splitlines() if line.startswith(f"{name}=="))


def venv(cache, name, wanted):
    """The python of an environment with exactly these requirements. Its scripts name their folder, so it cannot be renamed into place."""
    folder = cache / f"{name}-python{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin/python"
    if not (stamped(folder, wanted) and python.exists()):
        check_machine()
        say(f"making the python environment {folder}, once")
        create_venv(folder)
        install(python, folder, wanted)
        stamp(folder, wanted)
    return python


def create_venv(folder):
    if importlib.util.find_spec("ensurepip") is None:  # Debian and Ubuntu keep it in a package of its own
        install_python3_venv()
    made = run([sys.executable, "-m", "venv", "--clear", folder])
    if made.returncode != 0:
        raise SetupError(f"`{sys.executable} -m venv` failed: {last_line(made.stdout + made.stderr)}")


def install_python3_venv():
    apt = shutil.which("apt-get")
    if not apt or os.geteuid() != 0:
        how = "type `sudo apt-get install python3-venv`" if apt else "install your system's package of python's venv module"
        raise SetupError(f"`{sys.executable} -m venv` does not work: {how}, then run this again")
    say("installing the package python3-venv")
    run([apt, "update"])
    installed = run(["env", "DEBIAN_FRONTEND=noninteractive", apt, "install", "--yes", "--no-install-recommends", "python3-venv"])
    if installed.returncode != 0:
        raise SetupError(f"`apt-get install python3-venv` failed: {last_line(installed.stderr)}")


def install(python, work, wanted, *where):
    (work / "requirements.txt").write_text(wanted)
    exactly = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--requirement", work / "requirements.txt"]
    pip(python, work, "install", "--quiet", *exactly, *where)


def pip(python, work, *arguments):
    """Runs pip with its progress bar on our stderr, and makes one line of what it says when it fails."""
    temporary = work / "tmp"  # else pip fills /tmp, which is often small
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    said = ""
    with subprocess.Popen([python, "-m", "pip", *arguments], stdout=sys.stderr, stderr=subprocess.PIPE, env=environment, **CHILD) as child:
        for line in child.stderr:
            sys.stderr.write(line)
            said += line
    shutil.rmtree(temporary, ignore_errors=True)
    if child.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in said:
        raise SetupError("a download does not have its pinned checksum and was thrown away: run this again, and if it stays so, "
                         "ask whoever runs your package mirror")
    if "No space left on device" in said:
        raise SetupError(f"the disk of {work.parent} is full: free some space, or set PENSTOCK_CACHE to a folder on another disk")
    raise SetupError("pip failed (see above): if it could not fetch something, check the network and pip's proxy and index settings, "
                     "then run the same command again")


# --- folders that are finished or not there ---


@contextmanager
def cache_folder():
    """The cache folder, held by one set-up at a time. The lock goes with its holders, however they end. Child processes hold it too:
    a pip that outlives a killed set-up keeps the next one waiting, instead of working beside it."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.environ.get("PENSTOCK_CACHE") or os.path.join(base, "penstock")).absolute()
    if CHECKOUT in (cache.resolve(), *cache.resolve().parents):
        raise SetupError(f"the cache folder {cache} lies inside the checkout: set PENSTOCK_CACHE to one outside")
    cache.mkdir(parents=True, exist_ok=True)
    lock = os.open(cache / "lock", os.O_RDONLY | os.O_CREAT, 0o666)  # read-only: a cache that is finished need not be writable
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another set-up in {cache}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield cache
    finally:
        os.close(lock)


@contextmanager
def making(folder, wanted):
    """Gives a work folder; what the caller leaves in its `done` becomes `folder` in one step."""
    check_machine()
    work = folder.parent / f"partial-{folder.name}"
    if not stamped(work, wanted):  # nothing from before a change of versions may be mixed in
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stamp(work, wanted)
    shutil.rmtree(work / "done", ignore_errors=True)
    (work / "done").mkdir()
    yield work
    stamp(work / "done", wanted)
    os.sync()  # a power cut must not leave the name without the contents
    shutil.rmtree(folder, ignore_errors=True)
    (work / "done").rename(folder)
    shutil.rmtree(work)


def stamp(folder, wanted):
    (folder / "stamp").write_text(f"layout {LAYOUT}\n{wanted}")


def stamped(folder, wanted):
    try:
        return (folder / "stamp").read_text() == f"layout {LAYOUT}\n{wanted}"
    except FileNotFoundError:
        return False


def pins(requirements):
    """A requirement file without its comments: rewording one must fetch nothing anew."""
    return "".join(line for line in requirements.read_text().splitlines(keepends=True) if not line.startswith("#"))


def check_machine():
    libc, version = platform.libc_ver()
    glibc = tuple(int(part) for part in re.findall(r"\d+", version)[:2]) if libc == "glibc" else (0, 0)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64") or glibc < (2, 28):
        raise SetupError(
            f"what has to be fetched exists for x86_64 Linux with glibc 2.28 or newer, but this is {platform.machine()} "
            f"{platform.system()} with {f'{libc} {version}' if libc else 'another libc'}: bring cmake and, as LIBTORCH, libtorch {TORCH}"
        )


def need_space(work, needed):
    needed -= sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    free = shutil.disk_usage(work).free
    if free < needed:
        raise SetupError(
            f"{work.parent} needs {needed / GB:.1f} GB of room and has {free / GB:.1f} GB: "
            "free some, or set PENSTOCK_CACHE to a folder on another disk"
        )


if __name__ == "__main__":
    main()
