"""Out-of-distribution detection metrics for `evaluate`; the figures are those of `hf_oodclip.metrics`."""

import datasets
import evaluate
import numpy as np

from hf_oodclip.metrics import detection_metrics

_DESCRIPTION = """\
How well a score tells out-of-distribution (OOD) from in-distribution (ID) inputs: AUROC, AUPR with either side
positive, and the FPR at 95 % TPR in both conventions, each under a name that says which.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: One score an input; a larger score means more OOD.
    references: 1 for OOD, 0 for ID.
    convention: `mcm`, `openood` or `clipn` adds FPR95 (and AUPR) as those papers compute them.
    num_bootstrap: If positive, adds `<metric>_low` and `<metric>_high` from this many resamples.
    confidence: Share of the resamples inside the interval.
    seed: Fixes the resamples.
Returns:
    auroc, aupr_in, aupr_out: Shares; larger is better.
    fpr95_id_pos: OOD inputs accepted where 95 % of ID inputs are accepted; smaller is better.
    fpr95_ood_pos: ID inputs rejected where 95 % of OOD inputs are caught; smaller is better.
    num_id, num_ood: How many inputs of each side there were.
Examples:
    >>> metric = evaluate.load("evaluation/metrics/ood_detection")
    >>> metric.compute(predictions=[0.1, 0.2, 0.3, 0.4, 0.35, 0.5], references=[0, 0, 0, 0, 1, 1])["auroc"]
    0.875
"""
_CITATION = """\
@inproceedings{hendrycks2017baseline,
  title={A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks},
  author={Hendrycks, Dan and Gimpel, Kevin},
  booktitle={International Conference on Learning Representations},
  year={2017}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class OODDetection(evaluate.Metric):
    """The metric that `evaluate.load` returns."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/1610.02136", "https://arxiv.org/abs/2211.13445"],
        )

    def _compute(self, predictions, references, convention=None, num_bootstrap=0, confidence=0.95, seed=0):
        scores, is_ood = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if unknown := sorted(set(is_ood.tolist()) - {0, 1}):
            raise ValueError(f"references has {unknown[0]}; allowed are 1 for OOD and 0 for ID inputs.")
        figures = detection_metrics(
            scores[is_ood == 0],
            scores[is_ood == 1],
            convention=convention,
            num_bootstrap=num_bootstrap,
            confidence=confidence,
            seed=seed,
        )
        # Flat numbers: evaluate's own tools cannot save or combine pairs.
        flat = {}
        for name, value in figures.items():
            if name.endswith("_interval"):
                flat[name.replace("_interval", "_low")], flat[name.replace("_interval", "_high")] = value
            else:
                flat[name] = value
        return flat
