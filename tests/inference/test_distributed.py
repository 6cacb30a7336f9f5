"""Two processes under torchrun against one: equal on the same noise, alike on other noise, safe when one is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrolatent import VAE, InputError, LinearGaussian, Run, evaluate, fit, load_data
from pyrolatent.declaration import build

SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 15, "clip_norm": 1.0, "optimizer": {"Adam": {"lr": 0.01}}, "device": "cpu",
}  # fmt: skip
"""With 41 datapoints the batches are 15, 15 and 11, so that the two processes' parts are unequal."""


class Replayed(dist.Normal):
    """A normal whose noise is given."""

    noise: Tensor

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Replayed":
        new: Any = super().expand(batch_shape, _instance)
        new.noise = self.noise.expand(batch_shape)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise


class Posterior(nn.Module):
    """q(z | x) whose noise is a function of x, the same in whichever process x is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        loc, scale = self.network(x).chunk(2, -1)
        normal = Replayed(loc, nn.functional.softplus(scale))
        normal.noise = torch.sin(x @ torch.arange(1.0, 13.0).reshape(6, 2) * 100)
        return normal.to_event(1)


def data() -> Any:
    return load_data((torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.3).byte().numpy())


def model(posterior: Any = "normal") -> VAE:
    torch.manual_seed(0)
    small = {"mlp": {"hidden": [8]}}
    posterior = posterior if isinstance(posterior, str) else posterior()
    return VAE((6,), latent_dim=2, posterior=posterior, encoder=small, decoder=small)


def exact() -> LinearGaussian:
    torch.manual_seed(1)
    return LinearGaussian((6,), latent_dim=2)


def work(directory: Path) -> None:
    """What each of the two processes does; the first writes what was found."""
    from pyrolatent.inference import distributed

    torch.set_num_threads(1)
    distributed.start()
    replayed, drawn = model(Posterior), model()
    history = fit(replayed, data(), progress=False, **SETTINGS).history
    other = fit(drawn, data(), progress=False, **SETTINGS | {"epochs": 10}).history
    real = load_data(torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).numpy())
    evaluation = evaluate(exact(), real, particles=25, batch_size=3)
    machine = build("model", {"rbm": {"hidden": 3}}, event_shape=(6,), label_dim=0)
    with pytest.raises(InputError) as refused:
        fit(machine, data(), progress=False, objective="pcd", epochs=1, device="cpu")
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(distributed.rank())  # type: ignore[union-attr]
    distributed.average_buffers(norm)
    if distributed.rank() == 0:
        torch.save(
            {
                "averaged": norm.state_dict(),
                "replayed": replayed.state_dict(),
                "losses": [row["train_loss"] for row in history],
                "drawn": other[-1]["validation_elbo"],
                "refused": str(refused.value),
                "each": evaluation.each["log_evidence"],
                "khat_share": evaluation.khat_share,
            },
            directory / "found.pt",
        )
    distributed.stop()


def torchrun(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("two")
    process = torchrun(str(Path(__file__)), str(directory))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return torch.load(directory / "found.pt", weights_only=True)


def test_on_the_same_noise_two_processes_are_one(found: Any) -> None:
    """To float rounding, after nine steps of unequal parts: parameters and reported losses."""
    alone = model(Posterior)
    history = fit(alone, data(), progress=False, **SETTINGS).history
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(found["replayed"][name], value, rtol=1e-4, atol=1e-5)
    assert found["losses"] == pytest.approx([row["train_loss"] for row in history], rel=1e-5)


def test_on_other_noise_they_are_alike(found: Any) -> None:
    """The validation bound lies within four standard deviations of those of five seeds of one process."""
    seeds = [
        fit(model(), data(), progress=False, **SETTINGS | {"epochs": 10, "seed": seed}).history[-1]["validation_elbo"]
        for seed in range(5)
    ]
    spread = torch.tensor(seeds)
    assert abs(found["drawn"] - spread.mean().item()) < 4 * spread.std().item() + 0.02


def test_evidence_of_shared_datapoints_is_in_their_order(found: Any) -> None:
    """Exactly log p(x) of each, the posterior being exact."""
    x = load_data(torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).numpy()).test.batch(slice(None)).x
    torch.testing.assert_close(found["each"], exact().log_evidence(x).double(), rtol=1e-5, atol=1e-5)
    assert found["khat_share"] == 0


def test_running_statistics_are_averaged_and_counts_are_not(found: Any) -> None:
    assert found["averaged"]["running_mean"].tolist() == [0.5, 0.5]
    assert found["averaged"]["running_var"].tolist() == [1.0, 1.0]
    assert found["averaged"]["num_batches_tracked"] == 0


def test_chains_are_not_shared(found: Any) -> None:
    assert "keeps chains, which processes do not share, but there are 2; train it in one" in found["refused"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes by /proc")
def test_a_killed_process_ends_the_others_and_leaves_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    experiment = ["--epochs=100000", "--device=cpu", f"--output={run}", "--set=compile=never"]
    process = torchrun("-m", "pyrolatent", "train", *experiment, cwd=tmp_path)
    try:
        waited = time.monotonic()
        while not (run / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() - waited < 150
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "lost another one" in output or "interrupted" in output or "Signal 9" in output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["epoch"] == 1
    assert Run.load(run).model is not None


if __name__ == "__main__":
    work(Path(sys.argv[1]))
