"""How the models that come with the server were made."""
