"""How much of a training step is data and augmentation: ours beside the published per-sample style.

    python -m SpatialDiffusionTraining.benchmark_speed --train SCANS --dataset t1-brain [training options]

Both make the same kind of pairs from the same scans and train the same network with the same optimizer. "Per sample"
follows the published recipe's manner: every scan in memory as floats, one pair after another, each artifact a
pass of its own over the volume, every warp an interpolation of its own. With one CPU thread (--threads 1) the times
are processor times, otherwise wall times.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from SpatialDiffusionCore.method import diffusion

from . import run, trainer
from . import settings as settings_module
from .augmentation import warp
from .datasets import Cache
from .pairs import PairMaker, Pairs, seeded
from .settings import Settings


class PerSample:
    """Pairs one by one; the interface of PairMaker.make."""

    def __init__(self, maker: PairMaker, cache: Cache) -> None:
        self.maker = maker
        self.volumes = {e["row"]: cache.read([e["row"]]) for e in cache.entries}

    def corrupt(self, volume: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One volume through every artifact, each with an interpolation or pass of its own."""
        corruption, shape = self.maker.corruption, tuple(volume.shape[2:])
        draws = corruption.draw(1, generator)
        identity = torch.eye(3, 4, device=volume.device)[None]
        for name, draw in draws.items():
            if not bool(draw["on"]):
                continue
            artifact = corruption.artifacts[name][1]
            if name == "deformation":
                controls = artifact.displace(draw, shape).permute(0, 4, 1, 2, 3).to(volume.device)
                field = F.interpolate(controls, size=shape, mode="trilinear", align_corners=True)
                grid = F.affine_grid(identity, list(volume.shape), align_corners=False)
                grid = grid + field.permute(0, 2, 3, 4, 1)
                volume = F.grid_sample(volume, grid, align_corners=False)
            elif name in ("motion", "stretch"):
                profile = artifact.profile(draw, max(shape)).to(volume.device)
                volume = warp(volume, identity, None, profile)
            else:
                volume = corruption.filter(volume, {name: draw})
        return volume

    def make(self, rows: Sequence[int], generator: torch.Generator) -> Pairs:
        """Pairs of rows, one after another."""
        maker, shape = self.maker, self.maker.cache.shape
        made: list[tuple[torch.Tensor, ...]] = []
        for row in rows:
            t = torch.randint(1, maker.schedule.timesteps + 1, (1,), generator=generator)
            affine, target = diffusion.draw(maker.schedule, t, shape, generator, maker.rigid_share)
            pose = maker.pose.draw(1, generator, shape).to(maker.device)
            posed = warp(self.volumes[row].to(maker.device), pose)
            moved = warp(posed, affine.float().to(maker.device))
            made.append((self.corrupt(posed, generator), self.corrupt(moved, generator), t, target.float()))
        fixed, moving, t, target = (torch.cat(parts).to(maker.device) for parts in zip(*made))
        index = torch.tensor(rows)
        return Pairs(
            fixed,
            moving,
            t,
            maker.classes[index].to(maker.device),
            target,
            maker.cache.means[index].to(maker.device),
            maker.cache.covariances[index].to(maker.device),
            list(rows),
        )


class Batched:
    """Ours, with the same signature."""

    def __init__(self, maker: PairMaker, cache: Cache) -> None:
        self.maker = maker

    def make(self, rows: Sequence[int], generator: torch.Generator) -> Pairs:
        """Pairs of rows, all at once."""
        return self.maker.make(rows, generator)


STYLES: dict[str, Any] = {"batched": Batched, "per sample": PerSample}


def measure(style: str, chosen: Settings, steps: int, warm: int = 2) -> dict[str, float]:
    """{"data_ms", "step_ms", "share", "samples_per_second", "peak_mb"} of one style, in this process."""
    collections = run.prepare(chosen, lambda text: None)
    fabric = run.make_fabric(chosen)
    work = trainer.Trainer(chosen, collections, 1, fabric, lambda text: None)
    first = work.collections[0]
    maker = STYLES[style](work.makers[0], first.cache)
    cuda = fabric.device.type == "cuda"
    # The processor's time of the one thread, so that other programs on the machine do not count.
    clock = time.process_time if torch.get_num_threads() == 1 and not cuda else time.perf_counter

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    data = total = 0.0
    for step in range(warm + steps):
        wait()
        start = clock()
        pairs = maker.make(first.sampler.batch(step, chosen.optimization.batch), seeded(1, step))
        wait()
        made = clock()
        fabric.backward(work.loss(pairs)[0].mean())
        work.optimizer.step()
        work.optimizer.zero_grad(set_to_none=True)
        work.ema.update()
        wait()
        if step >= warm:
            data += made - start
            total += clock() - start
    batch = chosen.optimization.batch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if platform.system() == "Linux" else 1024**2)
    result = {
        "data_ms": 1000 * data / steps,
        "step_ms": 1000 * total / steps,
        "share": data / total,
        "samples_per_second": batch * steps / total,
        "peak_mb": peak,
    }
    if cuda:
        result["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.benchmark_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--timed-steps", type=int, default=10, metavar="N", help="steps timed per style (default 10)")
    parser.add_argument("--style", choices=list(STYLES), help="one style only, in this process, as JSON")
    settings_module.add_arguments(parser)
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    chosen = settings_module.resolve(arguments)
    with tempfile.TemporaryDirectory() as folder:
        chosen.run.output = chosen.run.output or folder
        if arguments.style:
            print(json.dumps(measure(arguments.style, chosen, arguments.timed_steps)))
            return 0
        cache = chosen.data.cache or str(Path(folder) / "cache")
        chosen.data.cache = cache
        run.prepare(chosen)  # so that neither style pays for it
        print(f"{'':12} {'data ms':>9} {'step ms':>9} {'share':>7} {'samples/s':>10} {'peak MB':>9}")
        for style in STYLES:  # each in a process of its own, so that its peak memory is its own
            command = [
                sys.executable,
                "-m",
                "SpatialDiffusionTraining.benchmark_speed",
                *argv,
                "--style",
                style,
                "--cache",
                cache,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            r = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{style:12} {r['data_ms']:9.0f} {r['step_ms']:9.0f} {r['share']:7.0%} "
                f"{r['samples_per_second']:10.2f} {r['peak_mb']:9.0f}"
                + (f"  ({r['peak_device_mb']:.0f} MB on the device)" if "peak_device_mb" in r else ""),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
