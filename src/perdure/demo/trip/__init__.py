"""The first part of the demonstration: an unmodified agent program that is killed, with its runtime, and goes on."""
