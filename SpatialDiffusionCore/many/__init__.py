"""Many volumes: series of frames, groups, and cohorts of pairs spread over processes."""
