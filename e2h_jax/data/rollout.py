"""A rollout: one solution that a policy drew, as tokens and as text. What reinforcement learning rewards and learns from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled solution of one problem.

    Attributes:
      problem: the problem's record (DESIGN section 5).
      sample: index of the sample.
      prompt: int32 [S], the tokens that the policy was given.
      tokens: int32 [T], T >= 1, the response; the last one is EOS (or another end token of the template) where that ended it.
      logprobs: float32 [T], under the policy's own distribution.
      sampling_logprobs: float32 [T], under the tempered and restricted one they were drawn from.
      stopped: ended by itself, not by the limit.
      text: the response as text, without special tokens, cut at the template's stop text.
    """

    problem: Mapping[str, Any]
    sample: int
    prompt: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    sampling_logprobs: np.ndarray
    stopped: bool
    text: str
