"""Faces for hosted programs and their processes: what an agent that Perdure did not write speaks to."""
