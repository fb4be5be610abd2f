"""A classic BPF machine for tests: runs seccomp programs as seccomp(2) describes them.

It knows the instructions our compiler writes and refuses what the kernel refuses before it takes a program
(bpf_check_classic and seccomp_check_filter): an unknown instruction, a jump out of it, an end without a verdict.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

LOAD, AND, JUMP, IF_EQUAL, IF_AT_LEAST, IF_ANY_BIT, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x45, 0x06
MAX_INSTRUCTIONS = 4096
DATA_SIZE = 64

KILL_PROCESS = 0x8000_0000
ERRNO = 0x0005_0000
ALLOW = 0x7FFF_0000
ACTION = 0xFFFF_0000


class Instruction(NamedTuple):
    """One struct sock_filter."""

    code: int
    then: int
    otherwise: int
    k: int


class End(NamedTuple):
    """How a run ended: the verdict, and which words of the data it took to get there."""

    verdict: int
    read: frozenset[int]


def decode(program: bytes) -> list[Instruction]:
    """The instructions of a program, checked as the kernel does before it takes one."""
    code = [Instruction(*fields) for fields in struct.iter_unpack("<HBBI", program)]
    assert 0 < len(code) <= MAX_INSTRUCTIONS
    for at, instruction in enumerate(code):
        assert instruction.code in (LOAD, AND, JUMP, IF_EQUAL, IF_AT_LEAST, IF_ANY_BIT, RETURN), f"unknown: {at}"
        assert all(at + 1 + distance < len(code) for distance in _distances(instruction)), f"leaves the program: {at}"
        if instruction.code == LOAD:
            assert instruction.k % 4 == 0, f"reads across words: {at}"
            assert instruction.k < DATA_SIZE, f"reads outside of the data: {at}"
    return code


def _distances(instruction: Instruction) -> tuple[int, ...]:
    known = {RETURN: (), JUMP: (instruction.k,), LOAD: (0,), AND: (0,)}
    return known.get(instruction.code, (instruction.then, instruction.otherwise))


def run(code: Sequence[Instruction], arch: int, number: int, args: Sequence[int] = (), pointer: int = 0) -> End:
    """Run a program on one call: struct seccomp_data is number, architecture, pointer, six arguments."""
    data = struct.pack("<IIQ6Q", number, arch, pointer, *[*args, 0, 0, 0, 0, 0, 0][:6])
    read: set[int] = set()
    at = word = 0
    while True:
        instruction = code[at]
        at += 1
        match instruction.code:
            case 0x06:
                return End(instruction.k, frozenset(read))
            case 0x20:
                (word,) = struct.unpack_from("<I", data, instruction.k)
                read.add(instruction.k)
            case 0x54:
                word &= instruction.k
            case 0x05:
                at += instruction.k
            case test:
                truths = {
                    IF_EQUAL: word == instruction.k,
                    IF_AT_LEAST: word >= instruction.k,
                    IF_ANY_BIT: word & instruction.k != 0,
                }
                at += instruction.then if truths[test] else instruction.otherwise


def strictest(newest_first: Sequence[int]) -> int:
    """What the kernel obeys: the lowest action taken as a signed number; of equal ones, the newest program's."""
    return min(newest_first, key=lambda verdict: struct.unpack("<i", struct.pack("<I", verdict & ACTION)))
