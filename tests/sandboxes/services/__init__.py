"""Services that have sandboxes, on this machine: they speak what the real ones speak, and really execute (in namespaces)."""
