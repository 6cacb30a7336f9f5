"""The table of Burda et al. 2016 (1509.00519): VAE and IWAE with k = 1, 5, 50 draws on binarized MNIST.

Trains `iwae_table.yaml` for some epochs by `elbo` and by `iwae`, evaluates -log p(x) on the test images with 5,000
draws and prints it beside the paper's, which is after 3,280 epochs in batches of 20. What is finished in the output
directory is not done again.

    python examples/iwae_table.py --epochs 10 --data-dir DIR --output runs/iwae_table
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import pyrolatent as pl
from pyrolatent.inference.modes import choose_device

PAPER = {("elbo", 1): 86.76, ("elbo", 5): 86.47, ("elbo", 50): 86.35}
PAPER |= {("iwae", 1): 86.76, ("iwae", 5): 85.54, ("iwae", 50): 84.78}

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--particles", type=int, default=5000, help="draws of the evaluation")
parser.add_argument("--data-dir", type=Path)
parser.add_argument("--device", default="auto")
parser.add_argument("--output", type=Path, default=Path("runs/iwae_table"))
parser.add_argument("--json", type=Path)
options = parser.parse_args()
torch.set_flush_denormal(True)

print(f"-log p(x), nats a test image, after {options.epochs} epochs in batches of 100; in brackets the paper's")
print("k       VAE                     IWAE")
rows = []
for k in (1, 5, 50):
    cells = []
    for name in ("elbo", "iwae"):
        # With one draw both objectives are the same.
        path = options.output / f"{'elbo' if k == 1 else name}-{k}"
        overrides = {
            "objective": {name: {"particles": k}}, "epochs": options.epochs, "device": options.device
        }  # fmt: skip
        experiment = pl.Experiment.load(Path(__file__).parent / "iwae_table.yaml", overrides)
        if not (path / "evaluation.json").exists():
            run = pl.train(experiment, path, data_dir=options.data_dir, overwrite=True, progress=sys.stdout.isatty())
            data = run.load_data(options.data_dir)
            run.write_evaluation(
                pl.evaluate(run.model.to(choose_device(options.device)), data, particles=options.particles)
            )
        found = json.loads((path / "evaluation.json").read_text())
        nll, error = -found["log_evidence"], found["log_evidence_se"]
        cells.append(f"{nll:6.2f} ± {error:.2f} [{PAPER[name, k]:.2f}]")
        rows.append({"objective": name, "k": k, "nll": nll, "se": error, "paper": PAPER[name, k]})
    print(f"{k:<8}{cells[0]:<24}{cells[1]}", flush=True)
if options.json:
    found = {
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} processor threads",
        "versions": {"torch": torch.__version__, "pyrolatent": pl.__version__},
        "epochs": options.epochs,
        "particles": options.particles,
        "batch_size": 100,
        "results": rows,
    }
    options.json.write_text(json.dumps(found, indent=2) + "\n")
