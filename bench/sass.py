"""Counts the instructions that a GPU kernel executes, from its machine code and how often its loops run.

`kernels(path)` disassembles a cubin. `Kernel.count(...)` gives the instructions of one thread: the sum
over basic blocks of instructions times passes. The passes come from one of two sources:

marks   S2E_MARK and S2E_MARK_BRANCH of csrc/common/marks.h, here a PMTRIG instruction each. The caller says how often a
        thread passes each mark, T. A loop that holds m copies of its mark (unrolled) runs T / m times; the remainder of
        an unrolled loop is counted there too. Blocks that only run after a branch mark, in the same innermost loop, run
        T times over the mark's copies.
tree    trips of every loop per entry, [(trips, [inner loops])], in the order of the code; it has to match the loops.

Blocks outside loops run once. What cannot be known is a SassError, never 1: a loop without mark, a mark that is not
there, an indirect branch. Both sides of an unmarked branch are counted, and so are predicated instructions: a warp
issues them whether or not a lane needs them, and for the same reason T means passes of a thread's warp. A subroutine
counts at every call. Not counted: marks, NOP, unreachable code, the detours of warps that are not converged.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from sass_graph import Graph, Instruction, Loop, SassError

CLASSES = {
    "MUFU": ("MUFU",),
    "FFMA/FMUL/FADD": ("FFMA", "FMUL", "FADD"),
    "LDS/STS": ("LDS", "STS", "LDSM", "STSM", "ATOMS"),
    "LDG/STG": ("LDG", "STG", "LD", "ST", "RED", "ATOM", "ATOMG", "LDGSTS"),
    "SHFL": ("SHFL",),
    "other": (),
}
SHARED_OF_SYSTEM = 1024  # bytes of every block
_CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}
LOOP_MARK, BRANCH_MARK, MARK_ID = 0x100, 0x200, 0xFF  # as in csrc/common/marks.h

# trips of a loop per entry, and its inner loops
LoopTree = Sequence[tuple[float, "LoopTree"]]


@dataclass(frozen=True)
class Count:
    """Instructions of one thread, weighted by passes: in all and by class."""

    total: float
    classes: dict[str, float]


@dataclass(frozen=True)
class Kernel:
    name: str
    code: tuple[Instruction, ...]

    @cached_property
    def graph(self) -> Graph:
        return Graph({i.address: i for i in self.code}, self.code[0].address)

    @property
    def instructions(self) -> int:
        """Instructions that can be reached, each once, without marks."""
        return sum(i.counts for block in self.graph.blocks.values() for i in block)

    @property
    def local_accesses(self) -> int:
        """Loads and stores of spilled registers and of local arrays."""
        return sum(i.opcode in ("LDL", "STL") for i in self.code)

    def count(
        self,
        *,
        marks: Mapping[int, float] | None = None,
        branches: Mapping[int, float] | None = None,
        sites: Mapping[int, int] | None = None,
        tree: LoopTree | None = None,
        detours: bool = True,
    ) -> Count:
        """marks, branches: the passes T of every mark; or tree: the trips of every loop. Raises SassError.

        sites: for a mark that stands in the text once and in the code in several loops (inlined), in how many.
        detours: whether conditional calls of subroutines count, such as that of a division for operands near the ends
        of the range.
        """
        try:
            if tree is None:
                passes = _passes_from_marks(self.graph, marks or {}, branches or {}, sites or {})
            else:
                passes = _passes_from_tree(self.graph, tree)
            classes: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
            for block, n in passes.items():
                if not detours and self.graph.is_detour(block):
                    continue
                for opcode, times in self.graph.opcodes(block).items():
                    classes[_CLASS_OF.get(opcode, "other")] += n * times
        except SassError as error:
            raise SassError(f"{self.name}: {error}") from None
        return Count(sum(classes.values()), classes)


def kernels(cubin: Path) -> dict[str, Kernel]:
    """By mangled name."""
    return parse(_cuobjdump("--dump-sass", cubin))


def resources(cubin: Path, architecture: int) -> dict[str, dict[str, int]]:
    """By mangled name: registers and bytes of stack a thread, bytes of static shared memory a block.

    From sm_90 on cuobjdump counts the system's share in, of kernels that use shared memory; here it is not.
    """
    system = SHARED_OF_SYSTEM if architecture >= 90 else 0
    text = _cuobjdump("--dump-resource-usage", cubin)
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    return {
        name: {"registers": int(registers), "stack": int(stack), "static_shared": max(0, int(shared) - system)}
        for name, registers, stack, shared in usage
    }


def parse(text: str) -> dict[str, Kernel]:
    """From what `cuobjdump --dump-sass` prints."""
    found: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            code = found[match[1]] = []
        elif match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", line):
            code.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4]))
    return {name: Kernel(name, tuple(code)) for name, code in found.items()}


def _cuobjdump(what: str, path: Path) -> str:
    """With the copy that Triton brings along."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise SassError("cuobjdump comes with triton, which is not installed")
    tool = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, what, path], capture_output=True, text=True)
    if done.returncode:
        raise SassError(f"cuobjdump failed: {done.stderr.strip()}")
    return done.stdout


def _passes_from_tree(graph: Graph, tree: LoopTree) -> dict[int, float]:
    trips: dict[Loop | None, float] = {None: 1.0}

    def assign(loops: list[Loop], tree: LoopTree, entries: float) -> None:
        if len(loops) != len(tree):
            raise SassError(f"trips are given for {len(tree)} loops, found {[f'{x.header:#x}' for x in loops]}")
        for loop, (n, inner) in zip(loops, tree, strict=True):
            trips[loop] = entries * n
            assign(loop.inner, inner, entries * n)

    assign(graph.outermost, tree, 1.0)
    return {block: trips[graph.innermost(block)] for block in graph.blocks}


def _passes_from_marks(
    graph: Graph, marks: Mapping[int, float], branches: Mapping[int, float], sites: Mapping[int, int]
) -> dict[int, float]:
    loop_marks, branch_marks = _marked_blocks(graph, LOOP_MARK), _marked_blocks(graph, BRANCH_MARK)
    for kind, given, found in (("mark", marks, loop_marks), ("branch mark", branches, branch_marks)):
        if missing := given.keys() - found.keys():
            raise SassError(f"{kind} {sorted(missing)} is not in the code")
        if unknown := found.keys() - given.keys():
            raise SassError(f"{kind} {sorted(unknown)} is in the code, how often it is passed was not given")
    trips = _trips(graph, marks, loop_marks, sites)
    passes = {block: trips[graph.innermost(block)] for block in graph.blocks}
    shares = []
    for id, blocks in branch_marks.items():
        around = sum(passes[block] for block in blocks)
        if blocks and branches[id] > around * (1 + 1e-6):
            raise SassError(f"branch mark {id} is passed {branches[id]:g} times, what holds it runs {around:g} times")
        shares += [(block, branches[id] / around if around else 0.0) for block in blocks]
    # a branch within a branch has the last word
    for marked, share in sorted(shares, key=lambda x: graph.order[x[0]]):
        loop = graph.innermost(marked)
        for block in graph.blocks:
            if graph.innermost(block) is loop and graph.dominates(marked, block):
                passes[block] = share * trips[loop]
    return passes


def _marked_blocks(graph: Graph, kind: int) -> dict[int, list[int]]:
    """The block of every copy of each mark. A predicated branch mark marks nothing: what follows is issued anyway."""
    found: dict[int, list[int]] = {}
    for block, body in graph.blocks.items():
        for i in body:
            if i.opcode == "PMTRIG" and (value := int(i.operands, 16)) & kind:
                found.setdefault(value & MARK_ID, []).extend([] if i.predicate and kind == BRANCH_MARK else [block])
    return found


def _trips(
    graph: Graph, passes: Mapping[int, float], blocks: Mapping[int, list[int]], sites: Mapping[int, int]
) -> dict[Loop | None, float]:
    """How often each loop runs in all, from the passes of every mark and its copies in each innermost loop."""
    found: dict[Loop | None, dict[int, float]] = {None: {0: 1.0}} | {loop: {} for loop in graph.loops}
    for id, n in passes.items():
        copies = Counter(map(graph.innermost, blocks[id]))
        most = max(copies.values())
        main = [place for place, m in copies.items() if m == most]
        parents = [place.parent if place else None for place in main]
        if len(main) != sites.get(id, 1):
            raise SassError(f"mark {id} is in {len(main)} loops, not {sites.get(id, 1)}")
        for place in copies:
            if place in main:
                found[place][id] = n / most / len(main)
            elif place is not None and place.parent in parents:
                found[place][id] = 0.0  # the remainder of an unrolled loop
            elif place not in parents:
                raise SassError(f"mark {id} is in a loop at {place.header if place else 0:#x} that is no remainder")
    trips = {}
    for loop, estimates in found.items():
        where = f"the loop at {loop.header:#x} ({len(loop.blocks)} blocks)" if loop else "the kernel"
        if not estimates:
            raise SassError(f"{where} has no mark")
        if not math.isclose(min(estimates.values()), max(estimates.values()), rel_tol=1e-6):
            raise SassError(f"marks disagree on how often {where} runs: {estimates}")
        trips[loop] = max(estimates.values())
    return trips
