"""What bench/memory.py measured, as a table."""

from __future__ import annotations

from collections.abc import Iterator

from report_cpu import machine, times

EXPLANATION = """
"Peak" is beyond parameters and input, gradients included; "kept" is what backward needs once forward is done,
the input too where a convolution keeps it. On the CPU both are what goes through torch's allocator. What
doesn't is not seen: each thread's scratch in our kernels ([cpu.md](cpu.md) says how much), and oneDNN's. A
block alone has its peak in backward, where recomputing has made everything again; it pays in a network, in
which the other blocks' maps would be kept meanwhile. Plain layers give back what they kept one by one; a
block holds its own until its convolution's gradients are done: where little is kept, its peak may be higher.
"""


def table(rows: dict) -> Iterator[str]:
    yield "| | | peak, MB | eager's over it | kept, MB | eager's over it |"
    yield "|---|---|--:|--:|--:|--:|"
    for name, sides in rows.items():
        for side, row in sides.items():
            shares = (times(sides["eager"][what] / row[what]) for what in ("peak", "kept"))
            cells = [
                f"{row[what] / 1e6:.1f} | {share}"
                for what, share in zip(("peak", "kept"), shares, strict=True)
            ]
            yield f"| {name} | {side} | {' | '.join(cells)} |"


def section(data: dict) -> str:
    lines = [
        "## Memory of a training step\n",
        "![Bytes held over a training step](memory.svg)\n",
        f"By `make memory` on {machine(data)}; {data['batch']} images in float32, a step of SGD.\n",
        *table(data["cpu"]),
        EXPLANATION,
    ]
    if "cuda" in data:
        gpu = data["machine_info"]["gpu"]
        lines += [f"On {gpu}, as torch.cuda counts, in the cuda backend:\n", *table(data["cuda"]), ""]
    return "\n".join(lines)
