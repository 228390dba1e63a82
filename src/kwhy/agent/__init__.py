"""The part of kwhy that runs on the target: Python 3.6 and its standard library, nothing else.

It reads and streams facts; all analysis happens at the desk. Only ``protocol`` and ``wire`` are
shared with the desk's end (``kwhy.link``).
"""

AGENT_VERSION = "0.1.0"
