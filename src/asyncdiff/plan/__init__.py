"""What is decided: who computes what, when, and from which version of which tensor. Pure: no devices, no processes."""
