#!/usr/bin/env python3
"""Write sage_sandbox/sandbox/inside/syscall_table.py from the kernel headers of this machine.

    tools/generate_syscall_table.py            write the file
    tools/generate_syscall_table.py --check    exit 1 if it would change

Needs an x86-64 machine with linux-libc-dev and a C preprocessor. aarch64 has always used the generic
table (arch/arm64/include/uapi/asm/unistd.h), so both can be made here.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

TABLE: Final = Path(__file__).parents[1] / "sage_sandbox/sandbox/inside/syscall_table.py"
HEADERS: Final = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ()),
    "aarch64": (
        Path("/usr/include/asm-generic/unistd.h"),
        # What arch/arm64/include/uapi/asm/unistd.h defines before it includes the generic table.
        ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "TIME32_SYSCALLS", "SYS_CLONE3", "MEMFD_SECRET"),
    ),
}
VERSION: Final = Path("/usr/include/linux/version.h")

# Calls younger than the headers of a stable distribution (Debian 12 has 6.1), with the release that brought each. From
# 424 on every architecture uses one number; younger calls than these are unknown to the filter and answered ENOSYS.
# Source: scripts/syscall.tbl of the kernel to 462, later patches to asm-generic/unistd.h and unistd_64.h for the rest.
YOUNGER: Final = {
    "cachestat": 451,  # 6.5
    "fchmodat2": 452,  # 6.6
    "map_shadow_stack": 453,  # 6.6
    "futex_wake": 454,  # 6.7
    "futex_wait": 455,  # 6.7
    "futex_requeue": 456,  # 6.7
    "statmount": 457,  # 6.8
    "listmount": 458,  # 6.8
    "lsm_get_self_attr": 459,  # 6.8
    "lsm_set_self_attr": 460,  # 6.8
    "lsm_list_modules": 461,  # 6.8
    "mseal": 462,  # 6.10
    "setxattrat": 463,  # 6.13
    "getxattrat": 464,  # 6.13
    "listxattrat": 465,  # 6.13
    "removexattrat": 466,  # 6.13
}
YOUNGER_BY_ARCH: Final = {"x86_64": {"uretprobe": 335}, "aarch64": dict[str, int]()}  # 6.11

_NUMBER: Final = re.compile(r"#define (__NR(?:3264)?_\w+) (\w+)")
_NOT_CALLS: Final = frozenset({"__NR_syscalls", "__NR_arch_specific_syscall"})


def available() -> bool:
    """Whether this machine has both headers."""
    return all(header.exists() for header, _ in HEADERS.values())


def read_header(arch: str) -> dict[str, int]:
    """Every call that the installed header names for this architecture, by number."""
    header, wants = HEADERS[arch]
    wanted = [f"-D__ARCH_WANT_{want}" for want in wants]
    argv = ["cc", "-E", "-dM", "-D__BITS_PER_LONG=64", *wanted, "-x", "c", str(header)]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    values: dict[str, str] = dict(_NUMBER.findall(found))
    numbers = {
        name.removeprefix("__NR_"): int(values.get(value, value))  # __NR_fcntl is __NR3264_fcntl is 25
        for name, value in values.items()
        if name.startswith("__NR_") and name not in _NOT_CALLS
    }
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def read_version() -> str:
    """The kernel release that the installed headers belong to, such as 6.1."""
    values = dict(re.findall(r"#define (LINUX_VERSION_\w+) (\d+)", VERSION.read_text()))
    return f"{values['LINUX_VERSION_MAJOR']}.{values['LINUX_VERSION_PATCHLEVEL']}"


def merge(arch: str, header: dict[str, int]) -> dict[str, int]:
    """The header's calls and the younger ones; a header that says otherwise is an error, not a choice."""
    for name, number in (YOUNGER | YOUNGER_BY_ARCH[arch]).items():
        if header.get(name, number) != number:
            raise ValueError(f"{arch}: {name} is {header[name]} in the header, {number} here")
    numbers = header | YOUNGER | YOUNGER_BY_ARCH[arch]
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def render() -> str:
    """The text of the module."""
    lines = [
        '"""Numbers of the system calls by name, for each architecture.',
        "",
        f"Written by tools/generate_syscall_table.py from headers of Linux {read_version()}, with younger calls added.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Final",
        "",
        "# fmt: off",
        "NUMBERS: Final[dict[str, dict[str, int]]] = {",
    ]
    for arch in HEADERS:
        lines.append(f'    "{arch}": {{')
        lines += [f'        "{name}": {number},' for name, number in merge(arch, read_header(arch)).items()]
        lines.append("    },")
    return "\n".join([*lines, "}", "# fmt: on", ""])


def main() -> int:
    """Write the table, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file would change")
    text = render()
    if parser.parse_args().check:
        return int(TABLE.read_text() != text)
    TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
