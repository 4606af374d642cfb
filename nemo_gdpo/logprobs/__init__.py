"""Log-probs of labels and EOS from hidden states, without a [tokens, vocabulary] matrix."""

from __future__ import annotations

from nemo_gdpo.logprobs.chunked import selected_logprobs
from nemo_gdpo.logprobs.main_grad import MainGrad
from nemo_gdpo.logprobs.reference import selected_logprobs_reference
from nemo_gdpo.logprobs.types import SelectedLogprobs

__all__ = ["MainGrad", "SelectedLogprobs", "selected_logprobs", "selected_logprobs_reference"]
