"""Seconds of rounds of a Flower simulation, printed as JSON; run by an interpreter that has flwr[simulation] and torch.

``bench_training.py --flower-python PATH`` calls this with the data in a folder. Every worker loads the data once and
keeps one network; a round is timed from one averaged model to the next, with no evaluation. This file uses neither
jointopt nor anything that needs it, and `local_steps` is also what the bare loop of ``bench_training.py`` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def network(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    assert name == "cnn", name
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def local_steps(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    part: Tensor,
    steps: int,
    batch: int,
    rate: float,
    rng: np.random.Generator,
) -> float:
    """Train on batches of a part of the data; return the loss of the last."""
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    for _ in range(steps):
        rows = part[torch.from_numpy(rng.choice(len(part), min(batch, len(part)), replace=False))]
        optimizer.zero_grad()
        loss = cross_entropy(module(inputs[rows]), labels[rows])
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@lru_cache(maxsize=1)
def loaded(folder: str, name: str) -> tuple[Tensor, Tensor, list[Tensor], nn.Module]:
    place = Path(folder)
    inputs, labels = (torch.from_numpy(np.load(place / f"{part}.npy")) for part in ("inputs", "labels"))
    rows, sizes = (torch.from_numpy(np.load(place / f"{part}.npy")) for part in ("rows", "sizes"))
    torch.set_num_threads(1)
    return inputs, labels, list(rows.split(sizes.tolist())), network(name)


def client_app() -> Any:
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # by name: this function travels to the workers, and what it closes over would travel along each time
        from flower_round import loaded, local_steps

        config, number = message.content["config"], int(context.node_config["partition-id"])
        inputs, labels, parts, module = loaded(str(config["folder"]), str(config["network"]))
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        rng = np.random.default_rng((int(config["server-round"]), number))
        steps, batch, rate = int(config["steps"]), int(config["batch"]), float(config["rate"])
        loss = local_steps(module, inputs, labels, parts[number], steps, batch, rate, rng)
        metrics = MetricRecord({"loss": loss, "num-examples": len(parts[number])})
        content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="with inputs.npy, labels.npy, rows.npy and sizes.npy")
    parser.add_argument("--network", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--drop", type=int, default=3, help="first rounds left out: workers start, data are loaded")
    parser.add_argument("--processors", type=int, default=1, help="clients trained at a time, one thread each")
    args = parser.parse_args()
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)

    import flwr
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    clients = len(np.load(Path(args.folder) / "sizes.npy"))
    marks: list[float] = []
    server = ServerApp()

    @server.main()
    def serve(grid: Any, context: Any) -> None:
        def mark(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            marks.append(time.perf_counter())
            return None

        torch.manual_seed(0)
        every = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        config = ConfigRecord(
            {
                "folder": str(Path(args.folder).resolve()),
                "network": args.network,
                "steps": args.steps,
                "batch": args.batch,
                "rate": args.rate,
            }
        )
        every.start(
            grid=grid,
            initial_arrays=ArrayRecord(network(args.network).state_dict()),
            num_rounds=args.rounds,
            train_config=config,
            evaluate_fn=mark,
        )

    run_simulation(
        server_app=server,
        client_app=client_app(),
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": args.processors, "include_dashboard": False},
            # 2 by default, with which two processors train one client at a time
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    assert len(marks) == args.rounds + 1, f"{len(marks) - 1} of {args.rounds} rounds ended"
    seconds = np.diff(marks)[args.drop :].tolist()
    print(json.dumps({"flwr": flwr.__version__, "torch": torch.__version__, "seconds": seconds}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
