"""Who waits for what, who holds it, and is it a deadlock."""
