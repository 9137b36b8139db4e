"""What a set of devices would do with a model, before any of them is there: time, memory, and which way to run it."""
