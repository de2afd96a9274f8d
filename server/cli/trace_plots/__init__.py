"""Pictures of a traced run, drawn with matplotlib."""
