"""Speed of the codecs on one thread: gigabytes of float32 per second, encoded, decoded and both together.

Run ``python benchmarks/bench_codecs.py``. Encoding checks the entries, draws random numbers, rounds and packs; decoding
checks the payload, unpacks and places. All codecs take turns, so that a busy spell of the machine meets them alike, and
the least time of each counts. Counted are the processor's seconds in this one thread, which on a free core are those on
the wall; ``--clock wall`` takes the latter.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from jointopt.federated.codecs import CODECS, Codec, codec
from jointopt.report import text_table

LIMIT = 0.4
"""GB/s that encoding and decoding together must reach, at every width of the quantizer from 1 to 16."""
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


@dataclass
class Entry:
    """One codec at one width, and its least times [s]."""

    label: str
    codec: Codec
    bits: int
    values: torch.Tensor
    encode: float = np.inf
    decode: float = np.inf
    simulate: float = np.inf
    sent: float = 0.0

    def run(self, clock_name: str) -> None:
        clock = CLOCKS[clock_name]
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        times = [clock()]
        payload = self.codec.encode(self.values, self.bits, generators[0])
        times.append(clock())
        decoded = self.codec.decode(payload)
        times.append(clock())
        simulated = self.codec.simulate(self.values, self.bits, generators[1])
        times.append(clock())
        assert torch.equal(decoded, simulated), f"{self.label}: simulated and decoded differ"
        self.encode, self.decode, self.simulate = (
            min(least, float(found))
            for least, found in zip((self.encode, self.decode, self.simulate), np.diff(times), strict=True)
        )
        self.sent = payload.bits / len(self.values)

    def row(self) -> list[str]:
        size = 4e-9 * len(self.values)
        speeds = [size / self.encode, size / self.decode, self.both, size / self.simulate]
        counted = self.label == "uniform" and self.bits <= 16
        verdict = ("yes" if self.both >= LIMIT else "NO") if counted else ""
        return [self.label, str(self.bits), f"{self.sent:.3f}", *(f"{speed:.2f}" for speed in speeds), verdict]

    @property
    def both(self) -> float:
        """GB/s of encoding and decoding."""
        return 4e-9 * len(self.values) / (self.encode + self.decode)


def main() -> None:
    """Print one table with the machine's load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=4_000_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="processor")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load}, {args.clock} time")
    values = torch.randn(args.entries, generator=torch.Generator().manual_seed(0)) * 1e-3
    entries = [Entry("uniform", codec("uniform"), bits, values) for bits in (*range(1, 17), 20, 24, 32)]
    # a range far from zero, where every entry is decided by the exact rule
    entries += [Entry("uniform, offset", codec("uniform"), bits, values + 1.0) for bits in (4, 16)]
    entries += [Entry("qsgd", codec("qsgd"), bits, values) for bits in (2, 4, 8, 16)]
    entries += [
        Entry(name, codec(name), bits, values)
        for name in CODECS
        if name not in ("uniform", "qsgd")
        for bits in codec(name).widths
    ]
    for _ in range(args.runs):
        for entry in entries:
            entry.run(args.clock)
    head = ["codec", "bits", "bits sent", "encode", "decode", "both", "simulate", f"both >= {LIMIT:g}"]
    print(text_table([entry.row() for entry in entries], head))
    slowest = min((entry for entry in entries if entry.label == "uniform" and entry.bits <= 16), key=lambda e: e.both)
    print(
        f"{args.entries:,} entries ({4e-6 * args.entries:.0f} MB), least of {args.runs} runs, GB/s of float32; slowest "
        f"width {slowest.bits}: {slowest.both:.2f} GB/s, {'within' if slowest.both >= LIMIT else 'BELOW'} the "
        f"{LIMIT:g} asked for; load after {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
