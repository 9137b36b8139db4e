"""Who has which weights."""
