"""Install what pip would install, with uv: `python install.py -e ".[book]"` (the Makefile's first step).

uv resolves and unpacks in parallel, so an environment of 3 GB takes half a minute rather than five. It does not read
pip's own settings, so they are handed on: a mirror or local wheels that pip knows are used here too. Where uv cannot be
had or does not succeed, pip does the work.
"""

import ast
import os
import subprocess
import sys

PIP = [sys.executable, "-m", "pip"]
OPTIONS = {  # pip's settings whose values go to uv; the others are about pip itself
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
}


def settings_for_uv(listing: str, environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return uv's options and environment for the settings that `pip config list` prints.

    Args:
        listing: Lines such as `global.index-url='https://...'`; those of the environment (`:env:.name`) come first, and
            count where a file says otherwise.
        environment: The process's environment, to which certificates are added.
    """
    found: dict[str, list[str]] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in (":env:", "global", "install"):
            found.setdefault(name, ast.literal_eval(value).split())
    options = [part for name, option in OPTIONS.items() for value in found.get(name, []) for part in (option, value)]
    if "extra-index-url" in found:
        options += ["--index-strategy", "unsafe-best-match"]  # as pip does: the best version of all indexes
    certificate = found.get("cert", [])[:1]
    return options, environment | ({"SSL_CERT_FILE": certificate[0]} if certificate else {})


def main(arguments: list[str]) -> int:
    """Install the arguments of `pip install` into this Python's environment, with its constraints.txt."""
    fixed = ["install", "-c", "constraints.txt", *arguments]
    if subprocess.run([*PIP, "install", "--quiet", "-c", "constraints.txt", "uv"]).returncode == 0:
        listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
        options, environment = settings_for_uv(listing, dict(os.environ))
        uv = [sys.executable, "-m", "uv", "pip", *fixed, "--python", sys.executable, *options]
        if subprocess.run(uv, env=environment).returncode == 0:
            return 0
    print("uv did not succeed; pip goes on", file=sys.stderr)
    return subprocess.run([*PIP, *fixed]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
