"""How near two computations of the same logits are, token by token."""

from collections.abc import Sequence

import numpy as np


def assert_near(
    wanted: Sequence[np.ndarray], got: Sequence[np.ndarray], bound: float, rerouted: float = 0.0
) -> None:
    """Logits [(n, vocab)] of several calls, compared by the relative L2 error of each token.

    The median token lies within `bound`, every one within twice that. rerouted: share of the tokens
    that may lie further away: in a mixture of experts whose router nearly ties, another rounding
    chooses another expert.
    """
    assert [a.shape for a in wanted] == [b.shape for b in got]
    a, b = np.concatenate(wanted), np.concatenate(got)
    errors = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    assert np.median(errors) <= bound, errors
    assert (errors > 2 * bound).mean() <= rerouted, errors
