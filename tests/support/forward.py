"""Forward passes of a device's models that several tests compare with the CPU's."""

import numpy as np

IDS = np.random.default_rng(5).integers(3, 200, 80)
PROMPT = "The city lay by the river"
# mixtures -> share of tokens that may get another expert (`assert_near`)
REROUTED = dict.fromkeys(
    ("mixtral", "qwen3moe", "qwen3moe-plain", "qwen2moe", "qwen2moe-normed"), 0.25
)


def steps(model, calls):
    """Logits of a session's forward calls [(ids, keep)], one after another."""
    session = model.session(100)
    return [session.forward(ids, keep=keep) for ids, keep in calls]
