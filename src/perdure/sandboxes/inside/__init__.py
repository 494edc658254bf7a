"""What runs behind the wall: plain Python for the system's interpreter, without anything of Perdure."""
