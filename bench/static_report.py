"""What the static report says of a kernel variant and of an op: figures, the occupancy limit, the tables."""

from __future__ import annotations

from dataclasses import dataclass

from sass import CLASSES, SHARED_OF_SYSTEM

SHARED_PER_SM = {80: 164 << 10, 90: 228 << 10}  # bytes
# instructions per state element, state 16
TARGETS = {("cuda", 80, "forward"): 14.0, ("cuda", 80, "backward"): 45.0}
# Torch's kernels around ours, such as casts and sums over parts, belong to the op too; they are not disassembled.
TORCH, TORCH_INSTRUCTIONS = "torch, 16 instructions an element assumed", 16


@dataclass(frozen=True)
class Variant:
    """One compiled kernel. Registers a thread, bytes of stack a thread, of shared memory a block, of code."""

    backend: str
    architecture: int
    kernel: str
    threads: int
    registers: int
    stack: int
    local_accesses: int  # instructions that load or store spilled registers
    static_shared: int
    dynamic_shared: int
    code: int

    @property
    def spills(self) -> bool:
        return self.stack > 0 or self.local_accesses > 0

    @property
    def limits(self) -> dict[str, int]:
        """Blocks that fit into a multiprocessor by each of its resources.

        Registers: 65,536, given to warps in units of 256, to blocks in units of 4 warps. Shared memory in units of 128
        bytes, with that of the system. 64 warps, 32 blocks.
        """
        warps = -(-self.threads // 32)
        registers_per_warp = -(-self.registers * 32 // 256) * 256
        warps_by_registers = 65536 // registers_per_warp // 4 * 4
        shared = -(-(self.static_shared + self.dynamic_shared + SHARED_OF_SYSTEM) // 128) * 128
        return {
            "registers": warps_by_registers // (-(-warps // 4) * 4),
            "shared memory": SHARED_PER_SM[self.architecture] // shared,
            "warps": 64 // warps,
            "blocks": 32,
        }

    def record(self) -> dict:
        limit = min(self.limits, key=lambda name: self.limits[name])
        blocks = self.limits[limit]
        occupancy = {"blocks_per_sm": blocks, "warps_per_sm": blocks * -(-self.threads // 32), "limited_by": limit}
        return vars(self) | occupancy | {"spills": self.spills}


@dataclass(frozen=True)
class Op:
    """Instructions per state element of an op, all its kernels together: by kernel and by class."""

    backend: str
    architecture: int
    direction: str
    dtype: str
    length: int
    reverse: bool
    kernels: dict[str, float]
    classes: dict[str, float]

    @property
    def per_element(self) -> float:
        return sum(self.kernels.values())

    @property
    def target(self) -> float | None:
        return TARGETS.get((self.backend, self.architecture, self.direction))

    @property
    def met(self) -> bool:
        return self.target is None or self.per_element <= self.target

    def record(self) -> dict:
        rounded = {
            name: {key: round(value, 3) for key, value in getattr(self, name).items()}
            for name in ("kernels", "classes")
        }
        figures = {"per_element": round(self.per_element, 3), "target": self.target, "met": self.met}
        return vars(self) | figures | rounded


def variant_table(records: list[dict]) -> str:
    """Markdown."""
    columns = (
        "backend",
        "sm",
        "kernel",
        "threads",
        "registers",
        "stack",
        "shared",
        "blocks (warps) per SM",
        "limit",
        "code",
    )
    rows = [
        (
            r["backend"], r["architecture"], f"`{r['kernel']}`", r["threads"], r["registers"], r["stack"],
            r["static_shared"] + r["dynamic_shared"], f"{r['blocks_per_sm']} ({r['warps_per_sm']})", r["limited_by"],
            r["code"],
        )
        for r in records
    ]  # fmt: skip
    return _markdown(columns, rows)


def op_table(records: list[dict]) -> str:
    """Markdown. Instructions per state element."""
    rows = []
    for r in records:
        goal = "" if r["target"] is None else f"{r['target']:g}{'' if r['met'] else ' MISSED'}"
        way = f"{r['direction']}{', reverse' if r['reverse'] else ''}"
        figures = [f"{r['classes'][name]:.2f}" for name in CLASSES]
        rows.append(
            (
                r["backend"],
                r["architecture"],
                way,
                r["dtype"],
                f"{r['length']:,}",
                f"{r['per_element']:.2f}",
                goal,
                *figures,
            )
        )
    return _markdown(("backend", "sm", "op", "dtype", "L", "all", "target", *CLASSES), rows)


def calibration_table(records: list[dict]) -> str:
    """Markdown."""
    rows = [
        (r["direction"], f"{r['length']:,}", f"{r['per_element']:.2f}", r["expected"], f"{100 * r['error']:+.1f} %")
        for r in records
    ]
    return _markdown(("mamba-ssm", "L", "all", "expected", "off by"), rows)


def _markdown(columns: tuple, rows: list[tuple]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
