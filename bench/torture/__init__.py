"""Ten thousand random `kill -9` of workers that drive governed runs, and what is left of every promise afterwards."""
