"""What keeps the benchmark from going on."""

from __future__ import annotations


class Problem(Exception):
    """A sentence for the person at the terminal: what is wrong, and what to do about it."""


class Failed(Problem):
    """Something did not end well, or not in time. The next one may."""
