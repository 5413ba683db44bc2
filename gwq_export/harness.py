"""The old name of `gwq_export.evaluation.lm_eval`, kept for one release."""

import runpy

if __name__ == "__main__":
    runpy.run_module("gwq_export.evaluation.lm_eval", run_name="__main__")
else:
    from gwq_export.evaluation.lm_eval import GwqLM as GwqLM
