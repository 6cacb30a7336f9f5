"""Tasks of a fitted model. Data, labels, masks and latents may be tensors, arrays or lists of any type."""

from pyrolatent.tasks.classification import classify
from pyrolatent.tasks.codes import encode, means, reconstruct
from pyrolatent.tasks.denoising import Denoised, denoise
from pyrolatent.tasks.erasing import erased
from pyrolatent.tasks.grids import label_grid, latent_grid, traverse
from pyrolatent.tasks.imputation import impute
from pyrolatent.tasks.interpolation import interpolate
from pyrolatent.tasks.sampling import sample, sample_title
from pyrolatent.tasks.scoring import Anomalies, RowScores, anomalies, score

__all__ = [
    "Anomalies", "Denoised", "RowScores", "anomalies", "classify", "denoise", "encode", "erased", "impute",
    "interpolate", "label_grid", "latent_grid", "means", "reconstruct", "sample", "sample_title", "score", "traverse",
]  # fmt: skip
