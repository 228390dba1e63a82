"""A verdict as a reader wants it: terminal text, JSON; and the manual's words beside it."""
