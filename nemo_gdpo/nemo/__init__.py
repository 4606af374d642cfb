"""NeMo's model classes and archives. The only room that imports nemo.

Everything they do is done by `nemo_gdpo.models.PreferenceModel`, which they hold.
"""

from __future__ import annotations

from nemo_gdpo.platform import current_platform

# Before NeMo can import megatron.
current_platform()
