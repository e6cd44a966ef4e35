"""The command line: one module per verb. Only this folder prints. What is heavy is imported when a verb runs."""
