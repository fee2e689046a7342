"""The training loop, on a model of a few weights."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from MissingModalitySynthLib.errors import InputError, OutputError
from training.logbook import Logbook
from training.loop import generator_at, train


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def example(number):
    return torch.randn(4, 3, generator=generator_at(7, number))


def losses(model, x, generator):
    """Draws from both sources of randomness that real losses use."""
    noise = torch.randn(x.shape, generator=generator) + torch.randn_like(x)
    return {"fit": (model(x + 0.1 * noise).float() - x.sum(1, keepdim=True)).square().mean()}


def run(folder, steps=8, *, examples=example, compute=losses, model=None, configuration=None, **options):
    model = model or network()
    defaults = {"warm_up": 2, "learning_rate": 1e-2, "log_steps": 3, "tensorboard": False, "precision": "float32"}
    configuration = configuration or {"name": "toy"}
    average = train(
        model, compute, examples, folder=folder, steps=steps, configuration=configuration, **{**defaults, **options}
    )
    return model, average


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_run_that_is_interrupted_again_and_again_equals_one_that_is_not(tmp_path):
    whole, whole_average = run(tmp_path / "whole")
    for _ in range(8):
        parts, parts_average = run(tmp_path / "parts", max_minutes=0)  # stops after every step
    assert equal(whole, parts)
    assert equal(whole_average, parts_average)
    for one, other in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        for name in ("step", "fit", "learning_rate", "gradient_norm"):
            assert one[name] == other[name]


def test_the_loss_falls_and_the_learning_rate_warms_up_and_falls_to_two_per_cent(tmp_path):
    run(tmp_path, steps=60, log_steps=1, warm_up=4)
    entries = log(tmp_path)
    assert [entry["learning_rate"] for entry in entries[:4]] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert entries[-1]["learning_rate"] == pytest.approx(2e-4, rel=0.1)
    assert sum(entry["fit"] for entry in entries[-10:]) < 0.8 * sum(entry["fit"] for entry in entries[:10])
    assert all(entry["steps_per_second"] > 0 and entry["memory_gb"] > 0 for entry in entries)


def test_sigterm_stops_after_the_step_with_a_checkpoint_and_the_run_goes_on_from_there(tmp_path):
    def terminating(number):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return example(number)

    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path / "stopped", examples=terminating)
    assert signal.getsignal(signal.SIGTERM) is before
    assert [entry["step"] for entry in log(tmp_path / "stopped")] == [3]
    seen = []
    resumed, _ = run(tmp_path / "stopped", examples=lambda number: seen.append(number) or example(number))
    assert seen == [5, 6, 7]
    assert equal(resumed, run(tmp_path / "whole")[0])


def test_a_loss_that_is_not_a_number_stops_the_run_names_the_example_and_keeps_the_checkpoint(tmp_path):
    def broken(model, named, generator):
        x = example(int(named.rsplit(" ", 1)[1]))
        return {"fit": losses(model, x, generator)["fit"] * (float("nan") if named.endswith(" 5") else 1)}

    with pytest.raises(FloatingPointError, match=r"step 5.*T1 -> T2 of subject 5"):
        run(tmp_path, compute=broken, examples=lambda number: f"T1 -> T2 of subject {number}", checkpoint_minutes=0)
    seen = []
    resumed, _ = run(tmp_path, examples=lambda number: seen.append(number) or example(number))
    assert seen == [5, 6, 7]
    assert all(torch.isfinite(value).all() for value in resumed.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_touched(tmp_path):
    def infinite(model, x, generator):
        return {"root": (model(x) * 0).abs().sqrt().sum()}  # the value is 0, the slope is not a number

    model = network()
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 0"):
        run(tmp_path, compute=infinite, model=model)
    assert equal(model, network())


def test_a_gradient_that_is_not_finite_names_all_examples_of_its_step(tmp_path):
    def second_is_infinite(model, named, generator):
        x = model(example(0))
        return {"root": (x * 0).abs().sqrt().sum() if named == "subject 1" else x.square().mean()}

    with pytest.raises(FloatingPointError, match="subject 0; subject 1; subject 2"):
        run(tmp_path, compute=second_is_infinite, examples=lambda number: f"subject {number}", accumulation=3)


def test_accumulating_two_examples_is_one_step_on_their_mean(tmp_path):
    def clean(model, x, generator):
        return {"fit": model(x).square().mean()}

    both = {n: torch.cat([example(2 * n), example(2 * n + 1)]) for n in range(4)}
    accumulated, _ = run(tmp_path / "two", steps=4, compute=clean, accumulation=2)
    joint, _ = run(tmp_path / "one", steps=4, compute=clean, examples=both.__getitem__)
    for a, b in zip(accumulated.parameters(), joint.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_two_processes_train_as_one_that_accumulates_two_examples(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            import torch
            torch.set_num_threads(1)
            sys.path.insert(0, {str(os.path.dirname(__file__))!r})
            from test_loop import network, run
            from training import distributed
            distributed.start("cpu")
            model = network()
            if distributed.rank() == 1:
                torch.nn.init.zeros_(model[0].weight)  # must not matter: all begin with the weights of the first
            run(Path({str(tmp_path / "two")!r}), steps=3, model=model)
            distributed.stop()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    one, average = run(tmp_path / "one", steps=3, accumulation=2)
    two, two_average = run(tmp_path / "two", steps=3)  # nothing left to do: the checkpoint is read
    for a, b in zip(
        (*one.parameters(), *average.parameters()), (*two.parameters(), *two_average.parameters()), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert a["fit"] == pytest.approx(b["fit"], abs=1e-5)


def test_gradient_checkpointing_computes_again_and_changes_nothing(tmp_path):
    class Block(nn.Linear):
        calls = 0

        def forward(self, x):
            Block.calls += 1
            return torch.tanh(super().forward(x))

    def blocks():
        torch.manual_seed(0)
        return nn.Sequential(Block(3, 8), Block(8, 1))

    kept, _ = run(tmp_path / "kept", steps=3, model=blocks())
    calls = Block.calls
    again, average = run(tmp_path / "again", steps=3, model=blocks(), checkpointed=(Block,))
    assert Block.calls - calls == 2 * calls
    assert equal(kept, again)
    average(example(0))
    assert Block.calls == 3 * calls + 2


def test_the_average_follows_the_weights_with_the_decay_that_is_asked_for(tmp_path):
    model, average = run(tmp_path / "none", ema_decay=0.0)
    assert equal(model, average)
    steps = [network().state_dict()]
    for _ in range(3):  # the weights after each step
        steps.append(run(tmp_path / "each", steps=3, ema_decay=0.2, max_minutes=0)[0].state_dict())
    expected = steps[0]["0.weight"]
    for number in range(1, 4):
        decay = min(0.2, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * steps[number]["0.weight"]
    assert torch.allclose(run(tmp_path / "each", steps=3, ema_decay=0.2)[1].state_dict()["0.weight"], expected)


def test_frozen_parts_stay_in_evaluation_mode_and_terms_without_gradient_are_only_logged(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(3).requires_grad_(False), network())

    def watched(model, x, generator):
        assert model.training and not model[0].training
        return losses(model, x, generator) | {"watched": torch.tensor(1e6)}

    run(tmp_path / "watched", steps=2, model=model, compute=watched, frozen=[model[0]])
    assert model[0].num_batches_tracked == 0
    assert log(tmp_path / "watched")[-1]["watched"] == 1e6


def test_bfloat16_is_used_in_the_forward_pass_alone(tmp_path):
    seen = []

    def watching(model, x, generator):
        seen.append(model(x).dtype)
        return losses(model, x, generator)

    model, _ = run(tmp_path, steps=1, compute=watching, precision="bfloat16")
    assert seen == [torch.bfloat16]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_checkpoint_of_other_settings_is_refused_by_their_name(tmp_path):
    run(tmp_path, steps=1, configuration={"optimizer": {"learning_rate": 1e-3}, "seed": 0})
    with pytest.raises(InputError, match=r"different: optimizer\.learning_rate\)"):
        run(tmp_path, steps=1, configuration={"optimizer": {"learning_rate": 1e-4}, "seed": 0})


def test_entries_that_a_killed_run_left_behind_its_checkpoint_are_dropped(tmp_path):
    entries = [{"step": step, "minutes": 0.0} for step in (2, 4, 6)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with Logbook(tmp_path, done=4, steps=8, tensorboard=False) as book:
        book.write({"step": 6, "minutes": 1.0})
    assert [entry["minutes"] for entry in log(tmp_path)] == [0.0, 0.0, 1.0]


def test_an_entry_that_a_full_disk_cut_short_does_not_hinder_the_run_that_goes_on(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 2, "minutes": 0.5}\n{"step": 3, "min')
    with Logbook(tmp_path, done=4, steps=8, tensorboard=False) as book:
        book.write({"step": 6, "minutes": 1.0})
    assert [entry["step"] for entry in log(tmp_path)] == [2, 6]


def test_a_log_that_cannot_be_written_keeps_its_entries(tmp_path, monkeypatch):
    content = '{"step": 2, "minutes": 0.5}\n'
    (tmp_path / "log.jsonl").write_text(content)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OutputError, match=r"log\.jsonl' can't be written.*No space left"):
        run(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == content


def test_a_run_that_stops_early_says_so_and_one_that_ends_does_not(tmp_path, capsys):
    run(tmp_path, max_minutes=0)
    assert "Stopped at step 1 of 8; the same command goes on from" in capsys.readouterr().err
    run(tmp_path)
    assert "Stopped" not in capsys.readouterr().err


def test_tensorboard_receives_the_scalars_and_a_panel_of_middle_slices(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def show(average, x):
        assert not average.training
        return {"T1": torch.full((1, 1, 4, 6, 3), -1.0), "T2": torch.full((1, 1, 4, 6, 3), 1.0)}

    run(tmp_path, steps=4, show=show, tensorboard=True, log_steps=2, image_steps=2)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("fit")] == [2, 4]
    images = events.Images("T1, T2")
    assert [image.step for image in images] == [2, 4]
    assert (images[0].width, images[0].height) == (8, 6)
