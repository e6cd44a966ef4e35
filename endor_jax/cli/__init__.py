"""The command line: one module per verb; what is heavy is imported when it runs. Only this folder prints."""
