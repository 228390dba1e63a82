"""``python -m bench``: kwhy beside trace-cmd and strace, in one lab guest and one run.

Three questions: how long from a command to its verdict, how much slower a program runs while kwhy
records it, and how fast trace pages are decoded. The peers do the same work on the same kernel in
the same guest, minutes apart at most; a machine with other work to do disturbs both.
"""
