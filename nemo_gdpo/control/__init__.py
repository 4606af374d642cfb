"""What ranks tell each other beside the computation: who failed, what rank 0 found, who may go on.

None of it goes over NCCL: a rank that waits here waits for what another does alone (conversion,
tokenising, hashing, a slow disk), and no limit of the computation may end that.
"""

from __future__ import annotations

from nemo_gdpo.control.agree import from_main_rank, gathered, on_every_rank

__all__ = ["from_main_rank", "gathered", "on_every_rank"]
