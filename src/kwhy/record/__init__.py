"""What a recording says: ring-buffer pages to events, events to calls, failing calls ranked."""
