"""How close a file is to its original: perplexity, KL divergence, zero-shot tasks.

Modules import only those listed above them:
    predictors
    reference
    perplexity
    tasks
    lm_eval
"""
