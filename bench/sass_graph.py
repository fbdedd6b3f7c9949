"""Control flow of one kernel's machine code: basic blocks, dominators, natural loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

STEP = 16  # bytes of an instruction


class SassError(Exception):
    """The instructions cannot be counted from what is known."""


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    name: str  # with modifiers
    operands: str

    @property
    def opcode(self) -> str:
        return self.name.split(".")[0]

    @property
    def target(self) -> int:
        """The address that a branch names."""
        if found := re.search(r"(?:^|\s)(0x[0-9a-f]+)$", self.operands):
            return int(found[1], 16)
        raise SassError(f"indirect branch at {self.address:#x}: {self.name} {self.operands}")

    @property
    def counts(self) -> bool:
        return self.opcode not in ("PMTRIG", "NOP")


@dataclass(eq=False)
class Loop:
    """A natural loop: what can reach one of its back edges without passing its header."""

    header: int
    blocks: set[int]
    parent: Loop | None = None
    inner: list[Loop] = field(default_factory=list)


class Graph:
    """The flow from `entry`. A block is called by the address of its first instruction."""

    def __init__(self, code: Mapping[int, Instruction], entry: int) -> None:
        self._code = code
        self._resume: dict[int, set[int]] = {}  # BSYNC -> where it continues
        while self._resolve_barriers():
            pass
        self.blocks = self._basic_blocks(entry)
        self.successors = {block: self._following(body[-1]) for block, body in self.blocks.items()}
        self.order = self._reverse_postorder(entry)
        self._dominator = self._dominators(entry)
        self.loops = self._loops()
        self.outermost = [loop for loop in self.loops if loop.parent is None]
        smallest_last = sorted(self.loops, key=lambda loop: -len(loop.blocks))
        self._innermost = {block: loop for loop in smallest_last for block in loop.blocks}

    def innermost(self, block: int) -> Loop | None:
        return self._innermost.get(block)

    def dominates(self, a: int, b: int) -> bool:
        """Whether every way from the entry to b passes a."""
        while self.order[b] > self.order[a]:
            b = self._dominator[b]
        return a == b

    def is_detour(self, block: int) -> bool:
        """Whether it calls a subroutine and the only block before it can also go elsewhere."""
        before = self._predecessors(block)
        beside = len(before) == 1 and len(self.successors[before[0]]) > 1
        return beside and any(self._is_call(i) for i in self.blocks[block])

    def opcodes(self, block: int) -> Counter[str]:
        """Instructions of one pass, subroutines included."""
        found: Counter[str] = Counter()
        for instruction in self.blocks[block]:
            found[instruction.opcode] += instruction.counts
            if self._is_call(instruction):
                body = Graph(self._code, instruction.target)
                if body.loops:
                    raise SassError(f"the subroutine at {instruction.target:#x} has a loop")
                for inner in body.blocks:
                    found += body.opcodes(inner)
        return found

    def _following(self, i: Instruction) -> list[int]:
        """Addresses that can come after an instruction."""
        after = [i.address + STEP]
        if i.opcode in ("EXIT", "RET"):
            return after if i.predicate else []
        if i.name.startswith("BRA.DIV"):  # taken by warps that are not converged
            return after
        if i.name.startswith("BRA.CONV"):  # taken by warps that are
            return [i.target]
        if i.opcode in ("BRA", "BRX", "JMP", "JMX") or (i.opcode == "CALL" and not self._is_call(i)):
            conditional = i.predicate or "," in i.operands
            return [*after, i.target] if conditional else [i.target]
        if i.opcode == "BSYNC":
            return sorted(self._resume.get(i.address, ()))
        return after

    def _is_call(self, i: Instruction) -> bool:
        """CALL also serves as a far jump; what a subroutine starts comes to a RET."""
        if i.opcode != "CALL":
            return False
        pending, seen = [i.target], {i.target}
        while pending:
            i = self._code[pending.pop()]
            if i.opcode == "RET":
                return True
            after = [i.address + STEP, i.target] if i.opcode == "BSSY" else [i.address + STEP]
            new = set(after if i.opcode in ("BSSY", "CALL") else self._following(i)) - seen
            seen |= new
            pending += new
        return False

    def _walk(self, start: int, stop: str | None = None) -> Iterator[Instruction]:
        """Instructions that can be reached, not beyond those that set or end the barrier `stop`."""
        pending, seen = [start], {start}
        while pending:
            i = self._code[pending.pop()]
            yield i
            if stop and i.opcode in ("BSSY", "BSYNC") and i.operands.split(",")[0] == stop:
                continue
            new = [address for address in self._following(i) if address not in seen]
            seen.update(new)
            pending += new

    def _resolve_barriers(self) -> bool:
        """One round of: a BSYNC continues where the BSSYs that reach it say. Whether anything new was found."""
        known = sum(map(len, self._resume.values()))
        for start in [i for i in self._code.values() if i.opcode == "BSSY"]:
            barrier = start.operands.split(",")[0]
            for i in self._walk(start.address + STEP, stop=barrier):
                if i.opcode == "BSYNC" and i.operands == barrier:
                    self._resume.setdefault(i.address, set()).add(start.target)
        return sum(map(len, self._resume.values())) > known

    def _basic_blocks(self, entry: int) -> dict[int, list[Instruction]]:
        reached = sorted(self._walk(entry), key=lambda i: i.address)
        ends = {i.address for i in reached if self._following(i) != [i.address + STEP]}
        leaders = {entry}.union(*(self._following(self._code[address]) for address in ends))
        blocks: dict[int, list[Instruction]] = {}
        previous = None
        for i in reached:
            if i.address in leaders or previous in ends or previous != i.address - STEP:
                block = blocks[i.address] = []
            block.append(i)
            previous = i.address
        return blocks

    def _reverse_postorder(self, entry: int) -> dict[int, int]:
        order, seen = [], {entry}
        stack = [(entry, iter(self.successors[entry]))]
        while stack:
            block, rest = stack[-1]
            for after in rest:
                if after not in seen:
                    seen.add(after)
                    stack.append((after, iter(self.successors[after])))
                    break
            else:
                order.append(block)
                stack.pop()
        return {block: i for i, block in enumerate(reversed(order))}

    def _dominators(self, entry: int) -> dict[int, int]:
        """The immediate dominator of every block (Cooper, Harvey and Kennedy 2001)."""
        dominator, order = {entry: entry}, self.order

        def common(a: int, b: int) -> int:
            while a != b:
                a, b = (dominator[a], b) if order[a] > order[b] else (a, dominator[b])
            return a

        changed = True
        while changed:
            changed = False
            for block in list(order)[1:]:
                known = [p for p in self._predecessors(block) if p in dominator]
                new = known[0]
                for p in known[1:]:
                    new = common(new, p)
                changed |= dominator.get(block) != new
                dominator[block] = new
        return dominator

    def _predecessors(self, block: int) -> list[int]:
        return [p for p, after in self.successors.items() if block in after]

    def _loops(self) -> list[Loop]:
        """In the order of the code, inner ones known to outer ones."""
        found: dict[int, Loop] = {}
        for block, after in self.successors.items():
            for header in after:
                if self.order[header] > self.order[block]:
                    continue
                if not self.dominates(header, block):
                    raise SassError(f"a loop with several entries, from {block:#x} to {header:#x}")
                body = found.setdefault(header, Loop(header, {header})).blocks
                pending = [block]
                while pending:
                    if (b := pending.pop()) not in body:
                        body.add(b)
                        pending += self._predecessors(b)
        loops = [found[header] for header in sorted(found)]
        for loop in loops:
            around = [other for other in loops if loop.header in other.blocks and other is not loop]
            loop.parent = min(around, key=lambda other: len(other.blocks), default=None)
            if loop.parent:
                loop.parent.inner.append(loop)
        return loops
