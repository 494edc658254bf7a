-- Which runs of an agent have ended last: looking for drift asks for them every minute, however many runs there are.
CREATE INDEX runs_ended ON runs (agent, ended_ms) WHERE ended_ms IS NOT NULL;
