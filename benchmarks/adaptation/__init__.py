"""Does adapting to a document help to answer from it? Objectives, regimes, alternatives."""
