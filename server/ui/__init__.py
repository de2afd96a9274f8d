"""The page that shows a model adapting to a document."""
