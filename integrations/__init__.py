"""Nodes and plug-ins for other programs. Each folder is copied, or linked, into the program that it is for."""
