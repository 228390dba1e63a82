"""Kernel code executed offline, on memory that is only read.

``Bench(kernel)`` is a processor with the kernel's memory behind it; ``call(...)`` runs one function
on it, ``dry_run(...)`` a system call. Nothing ever reaches the target: what the code writes stays
in copies and is told as a difference.
"""
