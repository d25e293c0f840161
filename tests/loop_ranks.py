"""What the ranks of tests/test_loop_ranks.py do, under torch.distributed.run or alone in one process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from loop_models import WindowLinUpper, batch, gradient, llama, mlp, model, pairs
from safetensors.torch import save_file
from torch.nn import functional

from karat.parts import Reweighter
from karat.reweight.online.group_dro import GroupDro
from karat.reweight.online.kl_dro import KlDro
from karat.reweight.online.loss_shape import LinUpper
from karat.trainers import FitSettings, Weigher, fit, weighted_step

RAW = torch.tensor([0.0, 0.5, 3.0, 1.0, 2.25, 0.0, 0.125, 1.5, 4.0, 0.75, 0.0, 1.0])
RULES: dict[str, Reweighter | None] = {
    "static": None,
    "micro-batch": LinUpper(temperature=0.4),
    "window": WindowLinUpper(temperature=0.4),
    "running": KlDro(temperature=0.5, scope="running"),
    "groups": GroupDro(step_size=0.5),
}
SHARES: dict[str, list[list[list[int]]]] = {
    "even": [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]],
    "short": [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10], [11]]],
    "fewer": [[[0, 1, 2], [3, 4], [5, 6, 7]], [[8, 9, 10, 11]]],
    "fewer on the first": [[[8, 9, 10, 11]], [[0, 1, 2], [3, 4], [5, 6, 7]]],
    "none": [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]], []],
    "one, none": [[], [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]],
}
"""share -> rank -> micro-batches."""


def joined(shares: list[list[list[int]]]) -> list[list[int]]:
    """The micro-batches of all ranks, as one process sees them."""
    most = max(len(share) for share in shares)
    return [[row for share in shares for one in share[at : at + 1] for row in one] for at in range(most)]


def own_losses(net: Any, one: Any) -> torch.Tensor:
    return functional.cross_entropy(net(one["x"]), one["y"], reduction="none")


Results = dict[str, torch.Tensor]


def steps(rank: int | None) -> Iterator[tuple[str, Results]]:
    """The gradient, state and figures of every case, as this rank sees them; None: alone."""
    for name, shares in SHARES.items():
        mine = joined(shares) if rank is None else shares[rank]
        for rule_name, rule in RULES.items():
            for kind, reduction, wrap, losses_of in (
                ("mlp", "token", True, None),
                ("mlp", "sample", False, None),
                ("mlp", "token", True, own_losses),
                ("llama", "token", True, None),
            ):
                net: Any = model(kind)
                trained = torch.nn.parallel.DistributedDataParallel(net) if wrap and rank is not None else net
                weigher = None if rule is None else Weigher(rule, rule.init(12, 3))
                groups = torch.arange(12) % 3
                batches = [batch(kind, rows, weight=RAW, group=groups) for rows in mine]
                options: Any = {"losses_of": losses_of, "reduction": reduction}
                for _ in range(2):  # twice: what DDP does in one pass it must be ready to do again
                    net.zero_grad()
                    figures = weighted_step(trained, batches, weigher, **options).read()
                found = {f"gradient/{key}": value for key, value in gradient(net).items()}
                found |= {f"figure/{key}": torch.tensor(float(v or 0)) for key, v in figures.items()}
                found |= {f"state/{key}": value for key, value in (weigher.state if weigher else {}).items()}
                case = f"{name}, {rule_name}, {kind}, {reduction}, {wrap}, {losses_of is not None}"
                yield case, {key: value.clone() for key, value in found.items()}


FITS: dict[str, tuple[int, str]] = {
    f"{n} rows, {rule}": (n, rule) for n in (16, 21, 17, 3) for rule in ("static", "window")
}


def fits(rank: int | None, folder: Path) -> Iterator[tuple[str, Results]]:
    """Trained parameters after short last steps and, on two ranks, after a stop in between."""
    sizes = {"batch_size": 8} if rank is None else {"batch_size": 2, "accumulation": 2}
    for case, (n, rule) in FITS.items():
        chosen = FitSettings(**sizes, epochs=3, clip=0.5, save_every=1)
        data = torch.utils.data.TensorDataset(*pairs(n))

        def run(at: int, data: Any = data, rule: str = rule, chosen: Any = chosen, case: str = case) -> Any:
            net = mlp()
            trained = net if rank is None else torch.nn.parallel.DistributedDataParallel(net)
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
            options = {"weight": RAW.repeat(2)[: len(data)].tolist(), "reweighter": RULES[rule]}
            kept = None if rank is None else folder / case
            fit(trained, data, optimizer, chosen, folder=kept, on_step=stop_at(at), **options)
            return net

        if rank is not None:
            with suppress(InterruptedError):
                run(2)
        yield case, dict(run(-1).state_dict())


def stop_at(step: int) -> Callable[[int, int], None]:
    def stop(now: int, total: int) -> None:
        if now == step:
            raise InterruptedError

    return stop


def killed(folder: Path, step: int | None) -> Results:
    """A run that is killed while it writes the checkpoint of a step."""
    import karat.trainers.loop.resume as resume

    if step is not None:
        write = resume.write_json

        def cut(tree: Any, path: Path) -> None:
            if tree["step"] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            write(tree, path)

        resume.write_json = cut  # type: ignore[assignment]
    net = llama(attention_dropout=0.3)
    data = [
        {name: value[0] for name, value in batch("llama", [i]).items() if name != "row"} for i in range(12)
    ]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    chosen = FitSettings(batch_size=2, accumulation=2, steps=7, save_every=1)
    fit(net, data, optimizer, chosen, reweighter=RULES["running"], folder=folder)
    return dict(net.state_dict())


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        killed(folder, int(sys.argv[2]))
        return
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for cases in (steps(rank), fits(rank, folder)):
        for case, found in cases:
            save_file(found, folder / f"{case} @{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
