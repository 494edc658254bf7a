"""Rules about actions, pure: policy, grants, labels, conduct, audit, undo, identity. Values in, values out."""
