"""The third part of the demo: an action that a policy holds, a person's signature, and a log that shows tampering."""
