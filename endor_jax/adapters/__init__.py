"""Other libraries' modules: models with a stack of blocks, saved and streamed with their code as it is."""
