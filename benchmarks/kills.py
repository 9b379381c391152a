"""Kills a training run again and again, and checks that it still ends with the same result.

    python benchmarks/kills.py --kills 20

One small run is not interrupted. Another with the same configuration is killed with SIGKILL at random moments, while it
starts, trains, evaluates, writes checkpoints or exports, and is started again with the same command after each kill.
After `--kills` kills it may finish. Every loss, every validation score and every weight must then be identical to the
last bit. The moments depend on `--seed` and are spread over one and a half times the time from a start to the next
checkpoint.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
OPTIONS = {
    "model.widths": (16, 16),
    "model.description.default_processing_resolution": 24,
    "data.size": (16, 24),
    "data.batch_size": 4,
    "run.log_every": 1,
    "run.checkpoint_every": 3,
    "run.evaluate_every": 10,
    "run.validation_images": 2,
}


def command(workdir: Path, steps: int) -> list[str]:
    flags = [f"--config.run.steps={steps}"]
    for key, value in OPTIONS.items():
        flags += [f"--config.{key}={item}" for item in (value if isinstance(value, tuple) else (value,))]
    program = [sys.executable, "-m", "marigold_jax.train", "--config", "quickstart"]
    return [*program, "--workdir", str(workdir), *flags]


def results(workdir: Path) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Everything that each step reported (loss, validation, ...) except its speed, and the exported weights."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("samples_per_second", None), line.pop("mfu", None)
    weights = load_file(workdir / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    return lines, weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL}

    undisturbed, killed = folder / "undisturbed", folder / "killed"
    subprocess.run(command(undisturbed, arguments.steps), check=True, **options)
    # Again, for the time it takes with its programs compiled.
    start = time.monotonic()
    subprocess.run(command(folder / "timed", 4), check=True, **options)
    longest = 1.5 * (time.monotonic() - start)

    moments = random.Random(arguments.seed)
    kills = starts = 0
    while True:
        process = subprocess.Popen(command(killed, arguments.steps), **options)
        starts += 1
        try:
            process.wait(moments.uniform(0, longest) if kills < arguments.kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            saved = sorted(int(path.name) for path in (killed / "checkpoints").glob("[0-9]" * 8))
            print(f"kill {kills}: the newest checkpoint is step {saved[-1] if saved else 0}", flush=True)
            continue
        if process.returncode:
            print(f"LOST: the run ended with status {process.returncode}; see {killed}")
            return 1
        if kills >= arguments.kills or starts > 10 * arguments.kills:
            break
    (reports, weights), (wanted_reports, wanted_weights) = results(killed), results(undisturbed)
    same = reports == wanted_reports and weights.keys() == wanted_weights.keys()
    same = same and all(np.array_equal(array, wanted_weights[name]) for name, array in weights.items())
    print(f"{kills} kills, {starts} starts, {len(reports)} steps: {'not a bit differs' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
