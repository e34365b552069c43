"""How well a calibration predicts training: 20 spread-out decisions, predicted and trained.

    python benchmarks/bench_calibration.py                    # Fashion-MNIST, 40 rounds: 6 minutes on one core
    python benchmarks/bench_calibration.py --full             # 150 rounds, 3 seeds
    python benchmarks/bench_calibration.py --data digits      # a minute

Decisions form a Latin hypercube over pruning ratio 0 .. 0.9, bits 1 .. 12 and power (logarithmic), the same for every
device; whether they keep budgets does not matter. Printed are Kendall's tau between prediction and training, the factor
between bound and measured mean squared gradient norm for each set of constants, and what each term of the bound says
beside what switching on that error alone adds. The calibration's seed is not that of the training runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import qmc

import jointopt as jo
from jointopt.report import text_table

DEVICES = 20
RATE = {"digits": 0.2, "fashion-mnist": 0.1}


def hypercube(system: jo.System, count: int = 20, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Return spread-out decisions by name, the name saying what they are."""
    devices, size = system.devices, len(system)
    out = {}
    for share, width, strength in qmc.LatinHypercube(d=3, seed=seed).random(count):
        ratio, bits = 0.9 * share, int(1 + 12 * width)
        out[f"{ratio:.2f}/{bits}/{strength:.2f}"] = {
            "pruning_ratio": np.full(size, ratio),
            "bits": np.full(size, float(bits)),
            "power": devices.power_min * (devices.power_max / devices.power_min) ** strength,
        }
    return out


def alone(system: jo.System) -> dict[str, dict[str, np.ndarray]]:
    """Return decisions with one error each: dense, 16 bits and full power otherwise."""
    devices, size = system.devices, len(system)
    clean = {"pruning_ratio": np.zeros(size), "bits": np.full(size, 16.0), "power": devices.power_max}
    return {
        "nothing": clean,
        "pruning 0.3": clean | {"pruning_ratio": np.full(size, 0.3)},
        "pruning 0.7": clean | {"pruning_ratio": np.full(size, 0.7)},
        "1 bit": clean | {"bits": np.full(size, 1.0)},
        "2 bits": clean | {"bits": np.full(size, 2.0)},
        "low power": clean | {"power": devices.power_min},
    }


def spread(values: np.ndarray) -> str:
    """Return median, least and largest of the finite values."""
    good = values[np.isfinite(values)]
    return f"{np.median(good):9.3g} ({good.min():.3g} .. {good.max():.3g})" if good.size else "vacuous"


def main() -> None:
    """Calibrate, predict, train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(RATE), default="fashion-mnist")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="150 rounds, 3 seeds")
    parser.add_argument("--folder", type=Path, help="where finished runs are kept")
    parser.add_argument("--save", type=Path, help="folder for pictures and the calibration")
    args = parser.parse_args()
    rounds = args.rounds or (150 if args.full else 60 if args.data == "digits" else 40)
    seeds = range(3 if args.full else args.seeds)
    torch.set_num_threads(1)

    large = args.data != "digits"
    task = jo.Task.make(data=args.data, devices=DEVICES, batch_size=64 if large else None, seed=0)
    system = jo.System.from_task(task, seed=0).with_(rounds=rounds, learning_rate=RATE[args.data])
    started = time.perf_counter()
    calibration = jo.calibrate(
        task, rounds=rounds, learning_rate=RATE[args.data], seed=1000, samples=400 if large else None
    )
    print(f"{task}\ncalibrated in {time.perf_counter() - started:.1f} s\n{calibration.summary()}\n")

    def trained(decisions: dict[str, dict[str, np.ndarray]]) -> jo.study.Comparison:
        return jo.compare(
            decisions,
            task,
            problem=jo.problems.LTFL(system),
            seeds=list(seeds),
            rounds=rounds,
            folder=args.folder,
            train_options={"evaluate_every": 2 if large else 1, "measure_gradient_every": 4 if large else 1},
        )

    started = time.perf_counter()
    comparison = trained(hypercube(system))
    seconds = time.perf_counter() - started
    print(f"{len(comparison.runs)} decisions x {len(seeds)} seeds x {rounds} rounds: {seconds:.0f} s")
    prediction = comparison.prediction(calibration)
    print(prediction.summary(), "\n")

    rows = []
    for row, cost in zip(prediction.tables["rounds"], prediction.costs, strict=True):
        numbers = [row[name] for name in ("bound", "forecast_square", "square", "forecast_loss", "loss", "accuracy")]
        rows.append([row["method"], *(f"{number:.4g}" for number in numbers), f"{cost['energy']:.3g}"])
    header = ["ratio/bits/power", "bound", "forecast", "measured", "forecast loss", "loss", "accuracy", "energy [J]"]
    print(text_table(rows, header), "\n")

    print("bound / measured mean ||grad F||^2 over all rounds, median (least .. largest), and tau with the accuracy:")
    kinds = {"problem's own constants": comparison.prediction()}
    kinds |= {kind: comparison.prediction(with_kind(calibration, kind)) for kind in ("worst", "device", "typical")}
    for kind, one in kinds.items():
        print(f"  {kind:24s} {spread(one.factor())}   tau {one.tau('bound', 'accuracy')[0]:.2f}")
    expected = prediction.column("rounds", "forecast_square") / prediction.column("rounds", "square")
    print(f"  {'forecast':24s} {spread(expected)}   tau {prediction.tau('forecast_loss', 'accuracy')[0]:.2f}\n")

    ablation(calibration, system, trained(alone(system)))
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
        calibration.save(args.save / "calibration.json")
        prediction.plot().savefig(args.save / "predicted.png", dpi=110)
        calibration.plot().savefig(args.save / "calibration.png", dpi=110)


def with_kind(calibration: jo.Calibration, kind: str) -> jo.Calibration:
    """Return the calibration with other constants by default."""
    return jo.Calibration.from_dict(calibration.to_dict() | {"kind": kind})


def ablation(calibration: jo.Calibration, system: jo.System, comparison: jo.study.Comparison) -> None:
    """Print the terms of the bound beside what each error alone adds to loss and mean squared gradient norm."""
    prediction = comparison.prediction(calibration)
    base = prediction.tables["rounds"][0]
    rows = []
    for row in prediction.tables["rounds"]:
        name = row["method"]
        decision = comparison.results[name].decision
        assert decision is not None
        terms = []
        for kind in ("worst", "device", "typical"):
            fitted = calibration.apply(system, kind).with_(
                bits_min=int(decision["bits"].min()), pruning_ratio_max=float(decision["pruning_ratio"].max())
            )
            parts = jo.problems.LTFL(fitted).evaluate(decision).parts
            which = "pruning" if "pruning" in name else "quantization" if "bit" in name else "transmission"
            terms.append(f"{float(parts[which]):.3g}")
        rows.append(
            [
                name,
                *terms,
                f"{row['square'] - base['square']:.3g}",
                f"{row['forecast_loss'] - base['forecast_loss']:.3g}",
                f"{row['loss'] - base['loss']:.3g}",
            ]
        )
    header = ["one error alone", "term: worst", "device", "typical", "added to ||grad F||^2", "forecast added loss"]
    print(text_table(rows, [*header, "added loss"]))
    print("(the term of transmission for 'nothing')")


if __name__ == "__main__":
    main()
