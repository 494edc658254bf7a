"""The pure run machine: entries in, state and commands out. No await, clock, chance or I/O."""
