"""Each objective, trained in this process by the one training program, on one device and on eight."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_training import records

from marigold_jax import Marigold
from marigold_jax.data.primitives import Primitives
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.locate import exported
from marigold_jax.training import progress


@pytest.mark.slow
def test_asked_to_stop_after_it_was_decided_what_to_save(here, tmp_path, monkeypatch):
    """Between the look at the signals and the next step: nothing that was said to be done may be lost."""
    record, asked = progress.Progress.record, []

    def ask(self, step, *arguments):
        record(self, step, *arguments)
        if not asked:
            asked.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Progress, "record", ask)
    here(tmp_path / "run", 1, run__evaluate_every=0)
    (saved,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert asked == [1] and saved == records(tmp_path / "run")[-1]["step"] == 2


# Made on 2026-11-22 with jax 0.10.2 on a CPU. They may move with what is trained (model, noise, data, optimiser), never
# with how the program is written; a change here belongs into the changelog.
GOLDEN = (1.522540, 1.393737, 1.371201, 1.362188)


@pytest.mark.slow
def test_golden_losses_on_one_device_and_on_eight(here, tmp_path):
    one = here(tmp_path / "one", 1, run__steps=4, run__evaluate_every=0)
    np.testing.assert_allclose(one, GOLDEN, rtol=1e-4)
    # Two steps on eight devices, with the parameters split over two; then on to the end on a single one.
    changed = here(tmp_path / "eight", 8, run__steps=2, run__evaluate_every=0, run__fsdp=2)
    np.testing.assert_allclose(changed, one[:2], rtol=1e-5)
    changed = here(tmp_path / "eight", 1, run__steps=4, run__evaluate_every=0)
    np.testing.assert_allclose(changed, one, rtol=1e-5)


@pytest.mark.slow
def test_lora_is_one_line_and_merged_on_export(here, reference, tmp_path):
    start = {"model__checkpoint": str(reference / "export"), "optim__ema_decay": 0.0}
    here(tmp_path / "run", 8, run__steps=3, run__evaluate_every=3, run__fsdp=2, optim__lora_rank=2, **start)
    file = Path("export", "unet", "diffusion_pytorch_model.safetensors")
    before, after = load_file(reference / file), load_file(tmp_path / "run" / file)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert after.keys() == before.keys()
    # attn2 reads a prompt that is all zeros here, and has nothing to learn from it.
    assert changed == {name for name in before if re.search(r"^conv_in|attn1.to_(q|k|v|out.0).weight", name)}
    shutil.rmtree(tmp_path / "run" / "export")
    exported(tmp_path / "run")  # what `predict --checkpoint WORKDIR` calls, in a process of its own
    for name, array in load_file(tmp_path / "run" / file).items():
        np.testing.assert_allclose(array, after[name], atol=1e-7)


@pytest.mark.slow
def test_a_vae_is_trained_by_the_same_program(here, tmp_path):
    changes = {"model__cell": 8, "model__vae_widths": (8, 8, 16, 16), "data__accumulation": 1, "data__size": (32, 48)}
    objective = {"name": "autoencoder", "prompt_length": 2}
    rate = {"optim__learning_rate": 3e-3, "optim__ema_decay": 0.0}
    losses = here(tmp_path / "run", 1, run__steps=12, run__evaluate_every=12, objective=objective, **changes, **rate)
    assert losses[-1] < 0.9 * losses[0]
    assert {"psnr", "abs_rel"} <= records(tmp_path / "run")[-1].keys()
    pipe = Marigold.from_pretrained(tmp_path / "run" / "export")
    assert pipe(Primitives(1, (32, 48))[0]["rgb"]).prediction.shape == (1, 32, 48, 1)


@pytest.mark.slow
def test_end_to_end_continues_what_diffusion_began(here, reference, tmp_path):
    start = {"model__checkpoint": str(reference / "export"), "optim__warmup_steps": 1}
    objective = {"name": "end_to_end", "noise": "gaussian", "units": "normalised", "prompt_length": 77}
    losses = here(tmp_path / "run", 8, run__steps=6, run__evaluate_every=6, objective=objective, **start)
    assert losses[-1] < losses[0]
    assert records(tmp_path / "run")[-1]["abs_rel"] < records(reference)[-1]["abs_rel"]


@pytest.mark.slow
def test_a_run_that_aligns_leaves_an_ordinary_checkpoint(here, tmp_path):
    changes = {"model__widths": (16, 16, 16), "data__size": (32, 48), "data__batch_size": 2, "data__accumulation": 1}
    objective = {"name": "diffusion", "prompt_length": 2, "align": 1.0}
    here(tmp_path / "run", 1, run__steps=3, run__evaluate_every=2, objective=objective, **changes)
    for line in records(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["task"] + line["alignment"], rel=1e-4)
    assert "abs_rel" in line
    file = tmp_path / "run" / "export" / "unet" / "diffusion_pytorch_model.safetensors"
    written = load_file(file)
    assert not [name for name in written if "align" in name]
    shutil.rmtree(tmp_path / "run" / "export")
    exported(tmp_path / "run")  # of a state that has the heads
    for name, array in load_file(file).items():
        np.testing.assert_allclose(array, written[name], atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(here, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 3: .* not finite 2 times in a row; lower config.optim"):
        here(tmp_path / "run", 1, run__max_skipped=2, run__evaluate_every=0, objective__strength=float("inf"))
